"""Exact answers: the last number of a response counts, whatever stands around it."""

import json
from pathlib import Path

import pytest

from examples.exact_answers.build import build
from examples.exact_answers.reward import exact_answer, names_nine
from rlhf_ray.config.reading.verbs import load_job

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "answer", "reward"),
    [
        ("The answer is 42.", "42", 1.0),
        ("6 x 7 = 42", 42, 1.0),
        ("42, no: 41", "42", 0.0),
        ("It costs $1,234.50", "1234.5", 1.0),
        ("minus four: -4", -4, 1.0),
        ("I do not know", "42", 0.0),
        ("", 0, 0.0),
    ],
)
def test_the_last_number_counts(text: str, answer: object, reward: float) -> None:
    assert exact_answer([""], [text], answer=[answer], other=[None]) == [reward]


def test_answers_to_messages_are_judged_too() -> None:
    prompt, answer = [{"role": "user", "content": "6 times 7?"}], [{"role": "assistant", "content": "It is 42."}]
    assert exact_answer([prompt], [answer], answer=[42]) == [1.0]
    assert names_nine([prompt], [answer]) == [0.0]


@pytest.mark.parametrize(("text", "cost"), [(" 9", 1.0), ("9, no: 8", 0.0), ("", 0.0), (" 99", 0.0)])
def test_nine_costs(text: str, cost: float) -> None:
    assert names_nine([""], [text], answer=[9]) == [cost]


def test_the_task_is_what_it_says(tmp_path: Path) -> None:
    """Half of the demonstrations are wrong; no prompt stands twice; the reward takes the right answers."""
    files = build(tmp_path, demonstrations=2000, prompts=300, held_out=100)
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in files.items()}
    prompts = [row["prompt"] for part in rows.values() for row in part]
    assert len(set(prompts)) == len(prompts) == 2000 + 300 + 100
    for row in (row for part in rows.values() for row in part):
        assert row["answer"] == max(int(digit) for digit in row["prompt"].removesuffix(":").split())
    taught = [row for name in ("sft", "sft_held_out") for row in rows[name]]
    right = exact_answer([], [row["completion"] for row in taught], answer=[row["answer"] for row in taught])
    # A tie for the largest is right by chance.
    assert sum(right) / len(right) == pytest.approx(0.55, abs=0.05)
    again = build(tmp_path / "again", demonstrations=2000, prompts=300, held_out=100)
    assert all(again[name].read_bytes() == path.read_bytes() for name, path in files.items())


@pytest.mark.parametrize(
    "path", sorted((ROOT / "examples" / "exact_answers").glob("*.yaml")), ids=lambda path: path.name
)
def test_every_config_fits_its_schema_and_says_what_it_is(path: Path) -> None:
    config = load_job("sft" if path.name == "sft.yaml" else "ppo", [str(path)], check_files=False)
    assert config.output == f"outputs/exact_answers/{path.stem}"  # type: ignore[attr-defined]
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_kto_takes_the_reviews() -> None:
    assert load_job("dpo", [str(ROOT / "examples" / "reviews" / "kto.yaml")], check_files=False)

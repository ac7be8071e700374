"""The sentiment tutorial: its parts, and (slow) the whole of it at a fiftieth of its size."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples.reviews import grammar
from examples.sentiment_zh import follow, judge, ppo
from examples.sentiment_zh.classifier import train_classifier
from rlhf_ray.config.reading.verbs import SCHEMAS, load_job

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "examples" / "sentiment_zh"
pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize(
    ("label", "score", "expected"),
    [
        ("positive", 0.9, 0.9),
        ("negative", 0.9, 0.1),
        ("positive (stars 4 and 5)", 0.7, 0.7),
        ("negative (stars 1, 2 and 3)", 0.7, 0.3),
        ("NEGATIVE", 1.0, 0.0),
    ],
)
def test_positive_is_the_score_and_negative_the_rest(label: str, score: float, expected: float) -> None:
    assert judge.pleasure(label, score) == pytest.approx(expected)


@pytest.mark.parametrize("label", ["LABEL_1", "neutral", "", "not positive", "正面"])
def test_other_labels_are_an_error(label: str) -> None:
    with pytest.raises(ValueError, match="must begin with `positive` or `negative`"):
        judge.pleasure(label, 0.9)


def test_a_classifier_that_is_trained_here_judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import pipeline

    from rlhf_ray.models.tiny import build_tiny

    reviews = grammar.texts(4000, 1, ("zh",))
    build_tiny(tmp_path / "base", [review.text for review in reviews[:300]], vocab_size=600)
    # Three standard deviations above chance for the rows kept aside, about 240: the machine moves what is learned.
    assert train_classifier(tmp_path / "classifier", tmp_path / "base", reviews, seed=0) > 0.6
    monkeypatch.setattr(judge, "CLASSIFIER", str(tmp_path / "classifier"))
    judge.load.cache_clear()
    texts = [review for review in grammar.texts(800, 2, ("zh",)) if abs(review.level - 0.5) > 0.3]
    scores = judge.sentiment([text.prompt for text in texts], [text.completion for text in texts])
    right = [(score > 0.5) == (text.level > 0.5) for score, text in zip(scores, texts, strict=True)]
    assert sum(right) > 0.6 * len(right)
    # One by one as in a batch, and as Transformers' own pipeline says.
    alone = judge.sentiment([texts[0].prompt], [texts[0].completion])
    assert alone == pytest.approx(scores[:1], abs=1e-5)
    said = pipeline("text-classification", model=str(tmp_path / "classifier"))(texts[0].text)[0]
    assert judge.pleasure(said["label"], said["score"]) == pytest.approx(scores[0], abs=1e-4)


@pytest.mark.parametrize("verb", sorted({"sft", "ppo", "reward", "score", "feedback", "label"} & set(SCHEMAS)))
def test_configs_are_valid(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    load_job(verb, [str(STAGES / f"{verb}.yaml")], check_files=False)


def test_nine_curves(tmp_path: Path) -> None:
    rows = [{"step": step, **{name: 9 * math.sin(step) for _, name in ppo.CURVES}} for step in range(1, 60)]
    assert min(ppo.with_floor(row)[ppo.EXPLAINED] for row in rows) == -1.0
    assert follow.line("reward", "objective/scores", rows[:5], "#000000").faint is None, "few points stay as they are"
    noisy = [{"step": step, "loss": (-1.0) ** step} for step in range(200)]
    assert follow.line("loss", "loss", noisy, "#000000").faint == [row["loss"] for row in noisy]
    follow.draw(
        tmp_path / "nine.png", "title", [ppo.with_floor(row) for row in rows], ppo.CURVES, columns=3, unit="epochs"
    )
    assert len(ppo.CURVES) == 9
    assert (tmp_path / "nine.png").read_bytes().startswith(b"\x89PNG")


def test_rows_are_handed_on_while_a_command_runs(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    script = (
        "import sys, time\nfile = open(sys.argv[1], 'w')\n"
        "for step in range(3):\n    file.write('{\"step\": %d}\\n' % step); file.flush(); time.sleep(0.1)\n"
        "file.write('{\"cut'); file.flush()"
    )
    command = [sys.executable, "-c", script, str(metrics)]
    found = list(follow.follow(command, tmp_path / "logs" / "a.log", metrics))
    assert [row["step"] for row in found] == [0, 1, 2]


def test_a_command_that_fails_shows_the_end_of_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('the reason'); raise SystemExit(3)"]
    with pytest.raises(SystemExit, match=r"the reason[\s\S]*failed with code 3"):
        list(follow.follow(command, tmp_path / "a.log", tmp_path / "none.jsonl"))


def test_exports_are_named_by_epoch_and_reward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "CHECKPOINTS", tmp_path / "checkpoints")
    for name in ("step_10_reward_0.512", "step_20_reward_-0.100", ".step_30_reward_0.6.part"):
        (tmp_path / "exports" / name).mkdir(parents=True)
    ppo.keep_exports(tmp_path / "exports")
    ppo.keep_exports(tmp_path / "nothing")
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["epoch_10_reward_0.512", "epoch_20_reward_-0.100"]


@pytest.mark.slow
def test_the_whole_tutorial(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    done = subprocess.run(
        [sys.executable, "-m", "examples.sentiment_zh.demo", "--scale", "0.02"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = tmp_path / "outputs" / "sentiment_zh"
    summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    assert all(0 <= summary[f"{name}_{when}"] <= 1 for name in ("reward", "oracle") for when in ("before", "after"))
    assert math.isfinite(summary["kl"])
    assert len(summary["two_texts"]) == 2
    assert len(summary["checkpoints"]) == summary["epochs"]
    assert all(re.fullmatch(r"epoch_\d+_reward_-?\d\.\d{3}", name) for name in summary["checkpoints"])
    assert {"classifier", "sft/final", "ppo/final", "reward/final"} <= set(summary["loaded_by_transformers"])
    for name in ("PPO-Sentiment-Zh", "Reward-Model-Zh"):
        assert (output / "logs" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # Each epoch's line, and five samples below it.
    lines = done.stdout.splitlines()
    for epoch in range(1, summary["epochs"] + 1):
        [place] = [number for number, line in enumerate(lines) if line.startswith(f"epoch {epoch} mean-reward: ")]
        shown = [line for line in lines[place + 1 :] if re.match(r"    (\d\.\d{3}|none)  ", line)]
        assert len(shown) >= 5

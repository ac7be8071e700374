"""`rlhf evaluate` through the command, on real engines: two models, a reward, an oracle, KL, texts, three judges."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray import cli
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.jobs.evaluate import answers as evaluate_answers
from rlhf_ray.jobs.evaluate import run as evaluate
from rlhf_ray.jobs.evaluate.scores import _identity
from tests.evaluation.judge_server import JudgeServer, answers_of, serve
from tests.jobs.ppo_runs import write_config, write_rows

HELD_OUT = ["The film was", "这部电影", "<script>alert(1)</script>\u202e"]
FUNCTIONS = """
def letters(prompts, completions, **columns):
    return [float(sum(c.isalpha() for c in text)) for text in completions]

def judgement(prompts, completions, grade, **columns):
    return [float("nan") if one == 1 else float(len(text)) for text, one in zip(completions, grade)]
"""
TEXT = "The film was wonderful and I would watch it again."


@pytest.fixture(scope="module")
def judge() -> Iterator[JudgeServer]:
    def first_by_alphabet(body: dict[str, Any], number: int) -> str:
        a, b = answers_of(body)
        return f"<b>{a[:3]}</b> " + ("[[C]]" if a == b else "[[A]]" if a < b else "[[B]]")

    with serve(first_by_alphabet) as server:
        yield server


@pytest.fixture(scope="module")
def world(workspace: Path, judge: JudgeServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a comparison, with the files that they name."""
    from rlhf_ray.models.tiny import build_tiny
    from tests.jobs.conftest import TEXTS

    folder = tmp_path_factory.mktemp("comparison")
    build_tiny(folder / "run" / "final", TEXTS, hidden=64, layers=2, heads=2, vocab_size=300, seed=5)
    record = {"run_id": "r", "total_steps": 1, "environment": {}, "status": "finished", "started": 5.0, "closed": 65.0}
    (folder / "run" / "run.json").write_text(json.dumps(record | {"peak_memory": 3 * 2**30}))
    write_rows(folder / "prompts.jsonl", [{"prompt": text, "grade": row} for row, text in enumerate(HELD_OUT)])
    write_rows(folder / "texts.jsonl", [{"text": TEXT}, {"text": "服务态度不错，下次还会再来。"}])
    verdict = {"prompt": "p", "a": "x", "b": "y", "winner": "a", "reason": "<img src=x onerror=alert(1)>"}
    write_rows(
        folder / "people.jsonl",
        [verdict | {"model_a": "new", "model_b": "old"}, verdict | {"prompt": "q", "model_a": "old", "model_b": "new"}],
    )
    (folder / "functions.py").write_text(FUNCTIONS)
    return {
        "output": str(folder / "out"),
        "models": {
            "old": {"path": str(workspace / "base"), "dtype": "float32"},
            "new": {"path": str(folder / "run" / "final"), "dtype": "float32"},
        },
        "baseline": "old",
        "reference": "old",
        "data": {"path": str(folder / "prompts.jsonl"), "max_prompt_tokens": 64},
        "samples_per_prompt": 2,
        "rollout": {"max_new_tokens": 8, "temperature": 0.8},
        "rewards": [{"kind": "function", "name": "letters", "function": f"{folder}/functions.py:letters", "weight": 2}],
        "oracle": {"kind": "function", "function": f"{folder}/functions.py:judgement", "failed_scores": 0.5},
        "texts": {"path": str(folder / "texts.jsonl")},
        "judges": [
            {"name": "score", "kind": "reward"},
            {"name": "service", "kind": "service", "url": judge.url, "model": "m"},
            {"name": "people", "kind": "people", "path": str(folder / "people.jsonl")},
        ],
    }


def run(settings: dict[str, Any], folder: Path) -> int:
    return cli.main(["evaluate", str(write_config(folder / "evaluate.yaml", settings))])


@pytest.fixture(scope="module")
def compared(world: dict[str, Any], ray_session: None) -> Path:
    """The folder of one whole comparison."""
    output = Path(world["output"])
    assert run(world, output.parent) == 0
    return output


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def rows(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.slow
def test_figures_are_those_of_the_answers(compared: Path) -> None:
    summary = summary_of(compared)
    assert set(summary["models"]) == {"old", "new"}
    for name, figures in summary["models"].items():
        answers = sorted(rows(compared, f"answers/{name}"), key=lambda row: (int(row["prompt_id"]), row["index"]))
        assert [row["prompt"] for row in answers] == [text for text in HELD_OUT for _ in range(2)]
        letters = [sum(c.isalpha() for c in row["completion"]) for row in answers]
        assert figures["reward"]["value"] == pytest.approx(2 * np.mean(letters))
        judged = [len(row["completion"]) for row in answers if row["prompt_id"] != "1"]
        assert figures["oracle"]["value"] == pytest.approx(np.mean(judged)), "a judgement that failed is left out"
        assert figures["oracle"]["count"] == 4
        assert figures["length"]["value"] == np.mean([len(row["response_ids"]) for row in answers])
    assert summary["models"]["new"]["seconds"] == 60
    assert summary["models"]["new"]["peak_memory_gib"] == 3
    assert summary["models"]["old"]["seconds"] is None


@pytest.mark.slow
def test_kl_and_perplexity_are_those_of_plain_transformers(compared: Path, world: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world["models"]["new"]["path"])
    networks = {
        name: AutoModelForCausalLM.from_pretrained(model["path"], dtype=torch.float32)
        for name, model in world["models"].items()
    }

    @torch.no_grad()
    def logprob(name: str, prompt: list[int], response: list[int], temperature: float) -> float:
        ids = torch.tensor([prompt + response])
        logits = networks[name](ids).logits[0, len(prompt) - 1 : -1] / temperature
        return float(logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).sum())

    ratios = []
    for row in rows(compared, "answers/new"):
        ids = tokenizer(row["prompt"])["input_ids"]
        new, old = (logprob(name, ids, row["response_ids"], 0.8) for name in ("new", "old"))
        ratios.append(new - old)
    figures = summary_of(compared)["models"]
    assert figures["new"]["kl"]["value"] == pytest.approx(np.mean(ratios), abs=1e-4)
    assert abs(np.mean(ratios)) > 1e-3, "the models must differ"
    assert figures["old"]["kl"]["value"] == 0
    losses = dict.fromkeys(networks, 0.0)
    tokens = 0
    for text in (TEXT, "服务态度不错，下次还会再来。"):
        ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        tokens += len(ids) - 1
        for name in networks:
            losses[name] -= logprob(name, ids[:1], ids[1:], 1.0)
    for name in networks:
        assert figures[name]["perplexity"]["value"] == pytest.approx(math.exp(losses[name] / tokens), rel=1e-4)
    tax = (losses["new"] - losses["old"]) / tokens
    assert figures["new"]["tax"]["value"] == pytest.approx(tax, abs=1e-5)


@pytest.mark.slow
def test_win_rates_of_all_judges(compared: Path) -> None:
    rates = summary_of(compared)["win_rates"]
    old, new = (
        {(row["prompt_id"], row["index"]): row["completion"] for row in rows(compared, f"answers/{name}")}
        for name in ("old", "new")
    )
    wins = sum(new[key] < old[key] for key in old)
    ties = sum(new[key] == old[key] for key in old)
    service = rates["service"]["new"]["outcome"]
    assert (service["wins"], service["ties"], service["losses"]) == (wins, ties, 6 - wins - ties)
    assert rates["people"]["new"]["outcome"] | {"rate": 0} == {"wins": 1, "ties": 0, "losses": 1, "rate": 0}
    assert set(rates["score"]) == {"new"}
    assert len(rows(compared, "verdicts/service.new")) == 6


@pytest.mark.slow
def test_the_page_shows_text_as_text(compared: Path) -> None:
    page = (compared / "comparison.html").read_text(encoding="utf-8")
    assert page.count("<script>") == 1, "only the page's own"
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;img src=x" in page
    assert "\u202e" not in page
    assert "http://" not in page.split("<summary>Config</summary>")[0]


@pytest.mark.slow
def test_the_same_command_repeats_nothing(
    compared: Path, world: dict[str, Any], judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object) -> Any:
        raise AssertionError("started again")

    before, asked = summary_of(compared), len(judge.bodies)
    monkeypatch.setattr(evaluate, "connect", nothing)
    assert run(world, compared.parent) == 0
    assert summary_of(compared) == before
    assert len(judge.bodies) == asked


@pytest.mark.slow
def test_what_a_kill_took_is_done_again_and_nothing_else(
    compared: Path, world: dict[str, Any], tmp_path: Path, judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    shutil.copytree(compared, output)
    lost = "scores/new", "logprobs/new.under.old", "texts/old", "verdicts/service.new"
    for name in lost:
        file = output / f"{name}.jsonl"
        file.write_bytes(file.read_bytes()[:-5])
    asked = len(judge.bodies)
    monkeypatch.setattr(evaluate_answers, "_generate", None)
    assert run(world | {"output": str(output)}, tmp_path) == 0
    assert len(judge.bodies) == asked + 2, "one pair, in both orders"
    before, after = summary_of(compared), summary_of(output)
    for name in ("old", "new"):
        assert after["models"][name]["kl"]["value"] == pytest.approx(before["models"][name]["kl"]["value"], abs=1e-5)
        assert after["models"][name]["reward"] == before["models"][name]["reward"]


@pytest.mark.slow
def test_answers_of_another_model_do_not_stay(
    compared: Path, world: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that was trained again under the same path, as by its file on disk, answers anew: all its prompts."""
    output, model = tmp_path / "out", tmp_path / "final"
    shutil.copytree(compared, output)
    shutil.copytree(world["models"]["new"]["path"], model)
    shutil.copy(Path(world["models"]["old"]["path"]) / "model.safetensors", model)
    asked: list[tuple[str, int]] = []

    class Enough(Exception):
        pass

    def note(config: Any, logs: Any, name: str, prompts: list[Any], start: Any) -> None:
        asked.append((name, len(prompts)))
        raise Enough

    monkeypatch.setattr(evaluate_answers, "_generate", note)
    models = world["models"] | {"new": {"path": str(model), "dtype": "float32"}}
    with pytest.raises(Enough):
        run(world | {"output": str(output), "models": models}, tmp_path)
    assert asked == [("new", 3)]
    assert not (output / "answers" / "new.jsonl").exists()
    assert (output / "answers" / "old.jsonl").exists()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no such baseline": ({"baseline": "odl"}, "baseline: no model is named 'odl'. Perhaps you meant old?"),
    "no such reference": ({"reference": "sft"}, "reference: no model is named 'sft'"),
    "name that is no file": ({"models.a/b": {"path": "m"}}, "models.a/b: names a file"),
    "no models": ({"models": {}}, "models: "),
    "KL under greedy sampling": ({"sampling": {"greedy": True}, "samples_per_prompt": 1}, "reference: KL is a mean"),
    "judges twice": ({"judges": [{"name": "x", "kind": "reward"}] * 2}, "judges.1.name: 'x' also names judges.0"),
    "unknown judge": ({"judges": [{"name": "x", "kind": "person"}]}, "judges.0: kind 'person' is not one of"),
    "unknown source": (
        {"judges": [{"name": "x", "kind": "reward", "source": "leters"}]},
        "judges.0.source: no reward source is named 'leters'",
    ),
    "oracle as a reward": (
        {"rewards": [{"kind": "function", "name": "oracle", "function": "f.py:g"}]},
        "rewards.0.name: 'oracle' is the name",
    ),
    "no url": ({"judges": [{"name": "x", "kind": "service", "url": "host", "model": "m"}]}, "judges.0.url: begins"),
    "instruction without verdicts": (
        {"judges": [{"name": "x", "kind": "service", "url": "http://h", "model": "m", "instruction": "Say [[A]]"}]},
        "judges.0.instruction: must say",
    ),
    "no file of people": (
        {"judges": [{"name": "x", "kind": "people", "path": "none.jsonl"}]},
        "judges.0.path: no such file",
    ),
    "no run": ({"models.old.run": "nowhere"}, "models.old.run: nowhere is no run folder"),
    "no texts": ({"texts": {"path": "none.jsonl"}}, "texts.path: no such file"),
    "unknown key": ({"modles": 3}, "modles: unknown key. Perhaps you meant models?"),
    "token that is not set": (
        {"judges": [{"name": "x", "kind": "service", "url": "http://h", "model": "m", "token_variable": "NO_SUCH"}]},
        "judges: x: token_variable: NO_SUCH is not set",
    ),
    "a reward model as a model": ({"models.new.path": "reward"}, "models.new: "),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    name: str,
    world: dict[str, Any],
    edit: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes, words = BAD[name]
    monkeypatch.chdir(tmp_path)
    base = Path(world["models"]["old"]["path"])
    shutil.copytree(base, "reward")
    config = json.loads((base / "config.json").read_text()) | {"architectures": ["Qwen2ForSequenceClassification"]}
    Path("reward", "config.json").write_text(json.dumps(config))
    assert run(edit(world, changes) | {"output": "out"}, tmp_path) == 2
    assert words in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.fixture
def edit() -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """Changes by dotted key, on a copy."""

    def changed(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(json.dumps(settings))
        for dotted, value in changes.items():
            here, *steps = found, *dotted.split(".")
            for step in steps[:-1]:
                here = here[step]
            here[steps[-1]] = value
        return found

    return changed


def test_scores_of_an_ensemble_are_those_of_all_its_members(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"old")
    source = ModelReward(path=str(tmp_path / "first"), ensemble=[str(tmp_path / "second")])
    before = _identity(source)
    assert _identity(source) == before
    (tmp_path / "second" / "model.safetensors").write_bytes(b"new")
    assert _identity(source) != before

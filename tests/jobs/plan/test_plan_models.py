"""Models that are not at hand, and texts that are longer than a model reads."""

import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.jobs.plan import footprints
from rlhf_ray.jobs.plan.run import DOES_NOT_FIT
from rlhf_ray.models.tiny import build_tiny
from tests.jobs.plan.plan_models import CONFIGS, ROOT


@pytest.mark.parametrize("answers", [True, False])
def test_a_model_of_a_hub_that_is_not_reached_is_unknown_at_once(
    answers: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    ends = threading.Event()

    def fetch(name: str) -> str:
        asked.append(name)
        if not answers:
            ends.wait(60)
        raise ConnectionError("Name or service not known\nmore")

    monkeypatch.setattr(footprints, "fetch_config", fetch)
    if not answers:
        monkeypatch.setattr(footprints, "HUB_SECONDS", 0.1)
    models = ["--model.path", "owner/model", "--rewards.0.path", "owner/judge"]
    try:
        assert cli.main(["plan", "ppo", str(CONFIGS / "ppo_7b_8gpu.yaml"), *models]) == DOES_NOT_FIT
    finally:
        ends.set()
    shown = " ".join(capsys.readouterr().out.split())
    reason = "the hub did not give it: Name or service not known" if answers else "the hub did not give it within 0.1 s"
    for name in ("owner/model", "owner/judge"):
        assert f"warning memory of {name} is not known, because its config could not be read: {reason}" in shown
    assert "256 prompts x 1 = 256 samples" in shown
    assert asked == (["owner/model", "owner/judge"] if answers else ["owner/model"]), "a silent hub is asked once"


def test_a_model_that_is_not_at_hand_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CONFIGS / "ppo_7b_8gpu.yaml"), "--model.path", "/nowhere/model"]) == 0
    shown = capsys.readouterr().out
    assert "warning model.path: no such directory: /nowhere/model" in shown
    assert "256 prompts x 1 = 256 samples" in shown
    assert "The KV cache" not in shown


def test_stages_without_their_files_are_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    iterate = str(ROOT / "examples" / "iterate" / "iterate.yaml")
    assert cli.main(["plan", iterate, "--reward", "none.yaml", "--prompts.path", "none.jsonl"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "warning reward: none.yaml: no such file" in shown
    assert "warning prompts.path: no such file or directory: none.jsonl" in shown


@pytest.fixture
def reads_512(tiny_model: Any, tmp_path: Path) -> Path:
    """A model with weights and tokenizer, for texts of 512 tokens, of heads that an engine on CPU takes."""
    return build_tiny(tmp_path / "model", tiny_model.texts, hidden=64, heads=2, max_tokens=512)


def planned(tmp_path: Path, verb: str, **config: Any) -> int:
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(config))
    return cli.main(["plan", verb, str(file)])


PROMPTS = {"path": str(ROOT / "README.md"), "max_prompt_tokens": 1024}


@pytest.mark.parametrize("verb", ["ppo", "generate"])
def test_what_engines_cannot_read_is_refused_as_by_the_run(
    verb: str, reads_512: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job: dict[str, Any] = {"model": {"path": str(reads_512)}, "data": PROMPTS, "rollout": {"max_new_tokens": 256}}
    if verb == "ppo":
        job |= {"rewards": [{"kind": "function", "function": f"{ROOT}/examples/reviews/balance.py:one_sided"}]}
    assert planned(tmp_path, verb, **job, output=str(tmp_path / ("out" if verb == "ppo" else "out.jsonl"))) == 2
    assert "are 1280 tokens together" in capsys.readouterr().err


@pytest.mark.parametrize("away", ["weights", "reward model"])
def test_heads_that_engines_on_cpu_cannot_compute_are_refused_from_the_config_file_alone(
    away: str, tiny_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = build_tiny(tmp_path / "model", tiny_model.texts, hidden=64, heads=4)
    reward = {"kind": "function", "function": f"{ROOT}/examples/reviews/balance.py:one_sided"}
    if away == "weights":
        (model / "model.safetensors").unlink()
    else:
        reward = {"kind": "model", "path": str(tmp_path / "yet to be written")}
    job = {"model": {"path": str(model)}, "data": PROMPTS, "rewards": [reward], "output": str(tmp_path / "out")}
    assert planned(tmp_path, "ppo", **job) == 2
    assert "vLLM has no CPU attention for heads of width 16" in capsys.readouterr().err


def test_longer_texts_than_a_model_was_made_for_are_a_word(
    reads_512: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = {"path": str(ROOT / "README.md"), "max_tokens": 600}
    assert planned(tmp_path, "sft", model={"path": str(reads_512)}, data=data, output=str(tmp_path / "out")) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "data.max_tokens: 600 tokens, but" in words
    assert "was made for 512 (max_position_embeddings)" in words

"""Settings of adapters that cannot work: one line that names the key, before anything starts."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.reading.verbs import load_job

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (change of a valid config, key that the line names, words in the line)
    "rank 0": ({"policy.lora": {"r": 0}}, "policy.lora.r", "greater than 0"),
    "unknown key": ({"policy.lora": {"lora_alfa": 16}}, "policy.lora.lora_alfa", "lora_alpha?"),
    "dropout of everything": (
        {"critics.value.lora": {"lora_dropout": 1}},
        "critics.value.lora.lora_dropout",
        "less than 1",
    ),
    "dropout of a sampling policy": ({"policy.lora": {"lora_dropout": 0.1}}, "policy.lora.lora_dropout", "ratio"),
    "layers by number": ({"policy.lora": {"target_modules": 3}}, "policy.lora.target_modules", "valid list"),
    "no layers": ({"policy.lora": {"target_modules": []}}, "policy.lora.target_modules", "names no layer"),
    "no bitsandbytes": ({"policy.lora": {"load_in_4bit": True}}, "policy.lora.load_in_4bit", "needs bitsandbytes"),
    "shards of 4 bits": (
        {"critics.value.lora": {"load_in_4bit": True}, "critics.value.zero_stage": 3},
        "critics.value.lora.load_in_4bit",
        "zero_stage to 2",
    ),
    "reload without an adapter": ({"rollout.adapter": "reload"}, "rollout.adapter", "set policy.lora"),
    "reload of a wide adapter": (
        {"policy.lora": {"r": 1024}, "rollout.adapter": "reload"},
        "policy.lora.r",
        "rank 512 at most",
    ),
    "reload onto other weights": (
        {"policy.lora": {"load_in_4bit": True}, "rollout.adapter": "reload"},
        "rollout.adapter",
        "load_in_4bit",
    ),
    "engine's own adapters": (
        {"policy.lora": {}, "rollout.engine": {"enable_lora": True}},
        "rollout.engine.enable_lora",
        "rollout.adapter",
    ),
    "a reference besides": ({"policy.lora": {}, "reference.workers": 2}, "reference", "adapter switched off"),
    "an adapter as model": ({"model.path": "adapter"}, "model.path", "rlhf merge adapter --output"),
    "an adapter as reward model": ({"rewards.0.path": "adapter"}, "rewards.0.path", "rlhf merge adapter --output"),
    "an adapter as critic": ({"critics.value.path": "adapter"}, "critics.value.path", "rlhf merge adapter --output"),
}


@pytest.fixture(autouse=True)
def without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))


@pytest.mark.parametrize("case", CASES)
def test_a_line_names_the_key(
    case: str, write_config: Any, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, key, words = CASES[case]
    (workplace / "adapter").mkdir()
    (workplace / "adapter" / "adapter_config.json").write_text("{}")
    assert cli.main(["ppo", write_config(changes).name]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if f" {key}: " in line]
    assert [line for line in lines if words in line and line.startswith("rlhf: config.yaml")], lines


def test_an_empty_section_takes_the_defaults(write_config: Any) -> None:
    config = load_job("ppo", [str(write_config({"policy.lora": {}})), "--critics.value.lora.r", "8"])
    assert config.policy.lora.target_modules == ["all-linear"]
    assert config.critics["value"].lora.r == 8
    assert config.reference.workers == 1

"""A model whose config.json contradicts itself or its weights: one line that names file and key, nothing started."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.config.errors import BadInput
from rlhf_ray.models.coherence import check_coherence
from rlhf_ray.models.loading import read_model_config

CASES: list[tuple[str, dict[str, Any], str]] = [
    # key, changes of config.json, words of the line
    (
        "hidden_size",
        {"num_attention_heads": 3, "num_key_value_heads": 3},
        "64 is no multiple of num_attention_heads",
    ),
    ("hidden_size", {"hidden_size": 128}, "128, but the weights are 64 wide (model.embed_tokens.weight)"),
    ("num_key_value_heads", {"num_key_value_heads": 8}, "8 does not divide num_attention_heads, 2"),
    ("num_key_value_heads", {"num_key_value_heads": 0}, "is 0, and a network has at least 1"),
    ("num_attention_heads", {"num_attention_heads": 0}, "is 0, and a network has at least 1"),
    ("vocab_size", {"vocab_size": 100}, "100, but the weights have 300 embeddings"),
    ("vocab_size", {"vocab_size": 4096}, "4096, but the weights have 300 embeddings"),
    ("architectures", {"architectures": ["LlamaForCausalLM"]}, "is of model_type llama, but model_type is qwen2"),
    ("architectures", {"model_type": "llama"}, "is of model_type qwen2, but model_type is llama"),
    ("architectures", {"architectures": "Qwen2ForCausalLM"}, "is a list, such as [Qwen2ForCausalLM]"),
    ("num_hidden_layers", {"num_hidden_layers": 5, "layer_types": None}, "5, but the weights have 2 layers"),
    ("num_hidden_layers", {"num_hidden_layers": 5}, "(5) must be equal to the number of `layer_types` (2)"),
    ("hidden_size", {"hidden_size": "64"}, "expected int, got str"),
]
VERBS = ("plan", "sft", "ppo", "generate")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from rlhf_ray.models.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("models") / "base", ["some words"], hidden=64, heads=2, vocab_size=300)


@pytest.fixture
def changed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any]], Path]:
    """Copy the model, in the current directory, with another config.json."""
    monkeypatch.chdir(tmp_path)

    def change(changes: dict[str, Any]) -> Path:
        file = shutil.copytree(base, tmp_path / "model") / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
        return file

    return change


def write_config(verb: str) -> list[str]:
    """Write rows and a config on the model; return the command line."""
    Path("rows.jsonl").write_text('{"prompt": "some", "completion": "words"}\n' * 8)
    Path("rules.py").write_text("def length(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    config: dict[str, Any] = {
        "output": "out.jsonl" if verb == "generate" else "run",
        "model": {"path": "model", "dtype": "float32"},
        "data": {"path": "rows.jsonl"},
    }
    if verb in {"plan", "ppo"}:
        config["rewards"] = [{"kind": "function", "function": "rules.py:length"}]
    Path("config.yaml").write_text(yaml.safe_dump(config))
    return [verb, "config.yaml"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("key", "changes", "words"), CASES)
def test_is_refused(
    verb: str,
    key: str,
    changes: dict[str, Any],
    words: str,
    changed: Callable[[dict[str, Any]], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    changed(changes)
    arguments = write_config(verb)
    before = set(Path().rglob("*"))
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert "model/config.json: " in line
    assert key in line
    assert words in line
    assert {path for path in Path().rglob("*") if "__pycache__" not in str(path)} == before


def test_engines_need_an_architecture(
    changed: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    changed({"architectures": []})
    assert cli.main(write_config("generate")) == 2
    assert "model/config.json: architectures: names nothing" in capsys.readouterr().err


def test_shapes_of_other_weights_are_compared(
    changed: Callable[[dict[str, Any]], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    changed({"intermediate_size": 99})
    assert cli.main(write_config("sft")) == 2
    line = capsys.readouterr().err
    assert (
        "its sizes make model.layers.0.mlp.gate_proj.weight of shape [99, 64], but the weights have [192, 64]" in line
    )


def test_a_width_of_heads_may_be_said(changed: Callable[[dict[str, Any]], Path]) -> None:
    file = changed({"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 32})
    check_coherence(str(file.parent), read_model_config(str(file.parent), False), None)


def test_keys_have_the_names_of_the_file(tmp_path: Path) -> None:
    """Each type has its own: what others call num_attention_heads is n_head in GPT-2."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "gpt2", "n_embd": 64, "n_head": 5}))
    with pytest.raises(BadInput, match=r"config.json: n_embd: 64 is no multiple of n_head, 5"):
        check_coherence(str(tmp_path), read_model_config(str(tmp_path), False), None)


def test_a_part_that_is_null_is_no_part(changed: Callable[[dict[str, Any]], Path]) -> None:
    from transformers import Qwen2Config

    changed({"text_config": None})
    with pytest.raises(BadInput, match=r"config.json: hidden_size: 64 is no multiple"):
        check_coherence("model", Qwen2Config(hidden_size=64, num_attention_heads=3, num_key_value_heads=3), None)

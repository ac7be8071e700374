"""Runs that cannot work, through the command: one clear message, exit code 2 (found before start) or 1, nothing left.

Configs, data files and reward functions that are wrong in themselves have their tables in the rooms that read them.
"""

import importlib.util
import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.runs.model_checks import CPU_HEAD_SIZES, check_transfer
from tests.jobs.bad_runs import Settings, fails, largest_file
from tests.jobs.ppo_runs import write_config, write_rows

BEFORE_START: dict[str, tuple[str, dict[str, str], list[str]]] = {
    # name: (verb, changed keys with models for values, words of the message)
    "model without tokenizer": (
        "sft",
        {"model.path": "no_tokenizer"},
        ["no_tokenizer: holds no tokenizer", "save_pretrained"],
    ),
    "weights pickled": (
        "sft",
        {"model.path": "pickled"},
        ["pickled", "no weights in safetensors", "pytorch_model.bin"],
    ),
    "weights cut off": ("ppo", {"model.path": "cut"}, ["cut/model.safetensors", "fetch it again"]),
    "weights missing in part": ("generate", {"model.path": "shard"}, ["1 of 2 weight files", "model-2-of-2"]),
    "config.json is no JSON": ("sft", {"model.path": "not_json"}, ["not_json/config.json", "is not JSON"]),
    "fewer embeddings than tokens": ("sft", {"model.path": "few_rows"}, ["few_rows", "embeddings for 280"]),
    "reward model as policy": ("ppo", {"model.path": "reward"}, ["reward", "not a language model"]),
    "policy as reward model": ("ppo", {"rewards.0.path": "base"}, ["rewards.0.path", "no reward model", "rlhf reward"]),
    "policy as scorer": ("score", {"rewards.0.path": "base"}, ["rewards.0.path", "Qwen2ForCausalLM"]),
    "classifier of several labels": (
        "score",
        {"rewards.0.path": "labels"},
        ["rewards.0.path", "this classifier has 3"],
    ),
    "reward model without tokenizer": (
        "score",
        {"rewards.0.path": "mute_reward"},
        ["rewards.0.path", "mute_reward: holds no tokenizer"],
    ),
    "heads of 16": ("generate", {"model.path": "heads_16"}, ["model.path", "heads of width 16", "32, 64, 80"]),
    "heads of 40": ("ppo", {"model.path": "heads_40"}, ["model.path", "heads of width 40"]),
    "mixture of experts": (
        "ppo",
        {"model.path": "experts"},
        ["model.path", "experts (qwen3_moe, a mixture of experts) cannot", "mlp.experts.down_proj", "a dense model"],
    ),
    "context too short": ("ppo", {"model.path": "short"}, ["48 tokens together", "at most 32", "max_new_tokens"]),
    "critic of another vocabulary": (
        "ppo",
        {"rewards.0.path": "foreign_reward"},
        ["critics.value.path", "another vocabulary", "set critics.value.path to policy"],
    ),
}


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if Ray starts."""
    import ray

    def start(*_: object, **__: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", start)
    # The session that other tests share would be joined.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("case", BEFORE_START)
@pytest.mark.usefixtures("no_ray")
def test_models_that_cannot_do_their_part(
    case: str,
    models: Path,
    settings_of: Callable[[str], Settings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verb, changes, words = BEFORE_START[case]
    paths = {key: str(models / name) for key, name in changes.items()}
    message = fails(verb, settings_of(verb), paths, tmp_path, capsys, code=2)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize("verb", ["ppo", "score"])
@pytest.mark.usefixtures("no_ray")
def test_a_reward_function_that_cannot_work(
    verb: str, settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text("import no_such_library\n\n\ndef right(prompts, completions): ...\n")
    source = {"name": "judge", "kind": "function", "function": f"{tmp_path}/judge.py:right"}
    message = fails(verb, settings_of(verb), {"rewards": [source]}, tmp_path, capsys, code=2)
    assert "rewards.0.function: " in message
    assert "judge.py:1: imports no_such_library" in message


@pytest.mark.parametrize(("gpus", "refused"), [(0, True), (1, False)])
def test_experts_of_the_same_names_are_refused_on_cpu_alone(gpus: int, refused: bool, tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "pad_token_id": 0}
    described = GptOssConfig(vocab_size=300, num_hidden_layers=1, intermediate_size=32, num_local_experts=2, **sizes)
    GptOssForCausalLM(described).save_pretrained(tmp_path)
    model, rollout = ModelConfig(path=str(tmp_path)), RolloutConfig(gpus_per_worker=gpus)
    with pytest.raises(BadInput, match=r"vLLM packs .*experts.* on CPU") if refused else nullcontext():
        check_transfer(model, rollout)


def test_an_adapter_that_travels_alone_needs_no_names(models: Path) -> None:
    check_transfer(ModelConfig(path=str(models / "experts")), RolloutConfig(adapter="reload"))


def test_supported_head_sizes_are_those_of_vllm() -> None:
    # From its source, because importing it takes long.
    [package] = importlib.util.find_spec("vllm").submodule_search_locations
    source = (Path(package) / "v1/attention/backends/cpu_attn.py").read_text()
    [sizes] = re.findall(r"def get_supported_head_sizes\(cls\).*\n\s+return \[([\d, ]+)\]", source)
    assert tuple(map(int, sizes.split(","))) == CPU_HEAD_SIZES


def test_a_critic_of_another_vocabulary_may_start_from_the_policy_instead(
    models: Path, settings_of: Callable[[str], Settings]
) -> None:
    from rlhf_ray.config.jobs.ppo import PPOConfig
    from rlhf_ray.jobs.ppo.run import check_models

    settings = settings_of("ppo")
    settings["rewards"][0]["path"] = str(models / "foreign_reward")
    settings["critics"]["value"]["path"] = "policy"
    config = PPOConfig.model_validate(settings)
    check_models(config)


DATA_AND_OUTPUT: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    # name: (verb, changed keys; FOLDER is the test's, words of the message)
    "all prompts too long": (
        "generate",
        {"data.path": "FOLDER/long.jsonl"},
        ["long.jsonl", "no row is left", "1 row: prompt longer than max_prompt_tokens (32)"],
    ),
    "tensor parallel and heads": (
        "generate",
        {"rollout.tensor_parallel": 3},
        ["rollout.tensor_parallel", "2 attention"],
    ),
    "layers that are not there": (
        "sft",
        {"trainer": {"lora": {"target_modules": ["q_proj", "c_attn"]}}},
        ["trainer.lora.target_modules", "'c_attn'", "q_proj, up_proj, v_proj"],
    ),
    "output below a file": ("sft", {"output": "FOLDER/answers.jsonl/run"}, ["output", "cannot write", "answers.jsonl"]),
    "file below a file": (
        "score",
        {"output": "FOLDER/answers.jsonl/b.jsonl"},
        ["output", "answers.jsonl is a file, not a folder"],
    ),
    "output is a folder": ("score", {"output": "FOLDER/taken.jsonl"}, ["taken.jsonl is a folder"]),
    "another experiment": (
        "sft",
        {"output": "FOLDER/other"},
        ["output: ", "other holds a run with other settings", "seed: 3 -> 0"],
    ),
    "columns of mixed type": (
        "score",
        {"output": "FOLDER/rows.parquet", "data.path": "FOLDER/mixed.jsonl"},
        ["rows.parquet", "'note'", "write .jsonl"],
    ),
    "no Ray at the address": (
        "score",
        {"cluster": {"address": "127.0.0.1:1"}},
        ["cluster.address", "ray start --head"],
    ),
    "address without a port": ("score", {"cluster": {"address": "somewhere"}}, ["cluster.address: ", "host:port"]),
    "several nodes without a cluster": (
        "score",
        {"groups": {"main": {"nodes": 2}}},
        ["groups.main.nodes", "rlhf submit"],
    ),
    "GPUs that are not there": (
        "score",
        {"groups": {"main": {"gpus_per_node": 64}}, "rewards.0.gpus_per_worker": 1},
        ["GPUs", "gpus_per_node"],
    ),
    "GPUs that are not there, after the run folder was made": (
        "sft",
        {"groups": {"main": {"gpus_per_node": 64}}, "trainer": {"gpus_per_worker": 1}},
        ["64 GPUs asked", "gpus_per_node"],
    ),
    "the same, with engines": (
        "ppo",
        {"groups": {"main": {"gpus_per_node": 64}}, "policy.gpus_per_worker": 1},
        ["64 GPUs asked", "gpus_per_node"],
    ),
}
FOUND_LATER = {"no Ray at the address"}
"""These are failures of the surroundings, not of what was said."""


@pytest.mark.parametrize("case", DATA_AND_OUTPUT)
@pytest.mark.usefixtures("no_ray")
def test_data_outputs_and_clusters(
    case: str, settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, changes, words = DATA_AND_OUTPUT[case]
    (tmp_path / "taken.jsonl").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("model: {path: elsewhere}\nseed: 3\n")
    rows = [{"prompt": "p", "completion": "c", "note": note} for note in (1, "one")]
    write_rows(tmp_path / "mixed.jsonl", rows)
    write_rows(tmp_path / "long.jsonl", [{"prompt": "很" * 99}])
    placed = json.loads(json.dumps(changes).replace("FOLDER", str(tmp_path)))
    code = 1 if case in FOUND_LATER else 2
    message = fails(verb, settings_of(verb), placed, tmp_path, capsys, code=code)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize(("verb", "module"), [("sft", "supervised.loop"), ("ppo", "ppo.run")])
@pytest.mark.usefixtures("no_ray")
def test_ctrl_c_before_the_first_step(
    verb: str,
    module: str,
    settings_of: Callable[[str], Settings],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"rlhf_ray.jobs.{module}.connect", interrupted)
    message = fails(verb, settings_of(verb), {}, tmp_path, capsys, code=130)
    assert message == "rlhf: interrupted before the first step; nothing was written"


@pytest.mark.usefixtures("no_ray")
def test_no_space_for_a_run_folder(
    settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of("sft") | {"seed": 7}
    write_config(tmp_path / "config.yaml", settings)
    before = sorted(tmp_path.rglob("*"))
    with largest_file(100):
        code = cli.main(["sft", str(tmp_path / "config.yaml")])
    assert code == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert "cannot write to" in capsys.readouterr().err

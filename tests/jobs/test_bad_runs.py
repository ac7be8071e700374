"""Runs that cannot work, through the command: one clear message, exit code 2 (found before start) or 1, nothing left.

Configs, data files and reward functions that are wrong in themselves have their tables in the rooms that read them.
"""

import importlib.util
import json
import re
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray import cli
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.runs.model_checks import CPU_HEAD_SIZES, check_transfer
from tests.jobs.ppo_runs import write_config, write_rows

LIMIT_SECONDS = 60.0
"""Each case ends within this time, on a busy machine too."""

Settings = dict[str, Any]


@pytest.fixture(scope="session")
def models(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, of which one is good (`base`) and each other has one thing wrong."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Qwen3MoeConfig,
        Qwen3MoeForCausalLM,
    )

    from rlhf_ray.models.tiny import build_tiny

    folder = tmp_path_factory.mktemp("bad_models")
    base = shutil.copytree(workspace / "base", folder / "base")

    def changed(name: str, change: Callable[[Path], object]) -> None:
        change(shutil.copytree(base, folder / name))

    def write_settings(path: Path, **values: Any) -> None:
        settings = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(settings | values))

    def cut_embeddings(path: Path, rows: int) -> None:
        network = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        network.resize_token_embeddings(rows)
        network.save_pretrained(path)

    changed("no_tokenizer", lambda path: [file.unlink() for file in path.glob("*token*")])
    changed("pickled", lambda path: (path / "model.safetensors").rename(path / "pytorch_model.bin"))
    changed(
        "cut", lambda path: (path / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:-9])
    )
    changed("not_json", lambda path: (path / "config.json").write_text("{"))
    changed("short", lambda path: write_settings(path, max_position_embeddings=32))
    changed("few_rows", lambda path: cut_embeddings(path, 280))
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2-of-2.safetensors"}}
    changed("shard", lambda path: (path / "model.safetensors.index.json").write_text(json.dumps(index)))
    for width, heads in ((16, 4), (40, 2)):
        build_tiny(folder / f"heads_{width}", ["text"], hidden=width * heads, heads=heads, vocab_size=270)
    build_tiny(folder / "foreign", ["quite other words"] * 9, hidden=64, heads=2, vocab_size=300)
    for name, source, labels in (("reward", "base", 1), ("labels", "base", 3), ("foreign_reward", "foreign", 1)):
        network = AutoModelForSequenceClassification.from_pretrained(
            folder / source, num_labels=labels, dtype=torch.float32
        )
        network.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(folder / source).save_pretrained(folder / name)
    experts = Qwen3MoeConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=32,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
    )
    Qwen3MoeForCausalLM(experts).save_pretrained(folder / "experts")
    AutoTokenizer.from_pretrained(base).save_pretrained(folder / "experts")
    shutil.copytree(folder / "reward", folder / "mute_reward", ignore=shutil.ignore_patterns("*token*"))
    return folder


@pytest.fixture
def settings_of(
    models: Path, workspace: Path, ppo_settings: Callable[..., Settings], tmp_path: Path
) -> Callable[[str], Settings]:
    """Good settings of a verb, whose output is `run` (or `rows.jsonl`) below `tmp_path`."""
    model = {"path": str(models / "base"), "dtype": "float32"}
    prompts = {"path": str(workspace / "prompts.jsonl"), "max_prompt_tokens": 32}
    answers = [{"prompt": f"p{number}", "completion": "c"} for number in range(12)]
    rows = write_rows(tmp_path / "answers.jsonl", answers)
    reward = {"name": "taste", "kind": "model", "path": str(models / "reward"), "dtype": "float32"}
    tracking = {"wandb": "off", "tensorboard": False}
    every: dict[str, Settings] = {
        "ppo": ppo_settings(tmp_path / "run", model=model, rewards=[reward]),
        "sft": {"output": "run", "model": model, "data": {"path": str(rows), "max_tokens": 64}, "tracking": tracking},
        "generate": {"output": "rows.jsonl", "model": model, "data": prompts, "rollout": {"max_new_tokens": 8}},
        "score": {"output": "rows.jsonl", "data": {"path": str(rows)}, "rewards": [reward], "batch_size": 4},
    }
    return lambda verb: every[verb] | {"output": str(tmp_path / every[verb]["output"])}


def fails(
    verb: str,
    settings: Settings,
    changes: dict[str, Any],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    *,
    code: int,
) -> str:
    """Run a verb with keys changed; returns its message, after checks that hold of every failure."""
    settings = json.loads(json.dumps(settings))
    for key, value in changes.items():
        *outer, last = key.split(".")
        section: Any = settings
        for name in outer:
            section = section[int(name) if isinstance(section, list) else name]
        section[last] = value
    config = write_config(folder / "config.yaml", settings)
    before = sorted(folder.rglob("*"))
    capsys.readouterr()
    began = time.monotonic()
    assert cli.main([verb, str(config)]) == code
    assert time.monotonic() - began < LIMIT_SECONDS
    assert sorted(folder.rglob("*")) == before, "nothing is left behind"
    message = capsys.readouterr().err
    said = "\n".join(line for line in message.splitlines() if line.startswith("rlhf: "))
    assert said
    assert "Traceback" not in message
    return said


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


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file larger than `size` bytes, as on a full disk or at the end of a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


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


FUNCTIONS = """
import os, time

calls = 0

def third_batch(completions):
    global calls
    calls += 1
    return calls == 3

def raises(prompts, completions, **columns):
    if third_batch(completions):
        raise KeyError("no such word")
    return [1.0 for _ in completions]

def hangs(prompts, completions, **columns):
    if third_batch(completions):
        time.sleep(600)
    return [1.0 for _ in completions]

def miscounts(prompts, completions, **columns):
    return [1.0 for _ in completions][third_batch(completions):]

def dies(prompts, completions, **columns):
    # A process that takes its place is asked once more, and dies of the same batch.
    # It knows by the date of this file, since nothing else may be left behind.
    if os.stat(__file__).st_mtime == 0 or third_batch(completions):
        os.utime(__file__, (0, 0))
        os._exit(3)
    return [1.0 for _ in completions]
"""
IN_THE_MIDDLE = {
    "raises": "judge.py:13: KeyError: 'no such word'",
    "hangs": "judge.py:hangs did not return within timeout_seconds 1",
    "miscounts": "judge.py:miscounts returned 3 scores for 4 completions",
    "dies": "judge.py:dies: its process ended with code 3",
}


@pytest.mark.parametrize("case", IN_THE_MIDDLE)
@pytest.mark.usefixtures("roles_here")
def test_reward_functions_that_fail_in_the_middle(
    case: str, settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(FUNCTIONS)
    source = {"name": "judge", "kind": "function", "function": f"{tmp_path}/judge.py:{case}", "timeout_seconds": 1}
    message = fails("score", settings_of("score"), {"rewards": [source]}, tmp_path, capsys, code=1)
    assert IN_THE_MIDDLE[case] in message
    assert "reward judge: scoring failed for 4 of 12 samples, more than its failed_scores 0.1" in message


@pytest.mark.usefixtures("roles_here")
def test_no_space_in_the_middle(
    settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(FUNCTIONS)
    rows = [{"prompt": "p" * 500, "completion": "c"} for _ in range(200)]
    settings = settings_of("score") | {"data": {"path": str(write_rows(tmp_path / "many.jsonl", rows))}}
    source = {"name": "judge", "kind": "function", "function": f"{tmp_path}/judge.py:dies", "failed_scores": 1}
    with largest_file(40_000):
        message = fails("score", settings, {"rewards": [source]}, tmp_path, capsys, code=1)
    assert "rows.jsonl: could not be written: the storage is full" in message


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_is_too_small(
    settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "groups": {"main": {"cpus_per_node": 64}},
        "cluster": {"deadlines": {"start_seconds": 1}},
    }
    message = fails("score", settings_of("score"), changes, tmp_path, capsys, code=1)
    assert "group 'main' asks 1 x (64 CPU" in message
    assert "in all: 8 CPU" in message

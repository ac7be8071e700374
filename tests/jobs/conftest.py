"""A PPO run of seconds on the real engines: a model from nothing, prompts, a reward that is easy to learn."""

import asyncio
import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import rlhf_ray
import tests.conftest
from tests.jobs.actors_here import actors_here, end_kept_engines
from tests.jobs.bad_runs import Settings
from tests.jobs.ppo_runs import write_rows
from tests.leftovers import nothing_left

TEXTS = tests.conftest.TEXTS[:5]
PROMPTS = [text[: 3 + cut] for cut in range(8) for text in TEXTS]

# Most tokens of a fresh model are other bytes, so that the share of letters has far to rise.
REWARD = """
def letters(prompts, completions, **columns):
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in completions]
"""


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base` (a model), `prompts.jsonl`, `held_out.jsonl` and `reward.py`."""
    from rlhf_ray.models.tiny import build_tiny

    folder = tmp_path_factory.mktemp("ppo")
    # vLLM's attention on CPU takes heads of 32 and more.
    build_tiny(folder / "base", TEXTS, hidden=64, layers=2, heads=2, vocab_size=300)
    write_rows(folder / "prompts.jsonl", [{"prompt": prompt} for prompt in PROMPTS])
    write_rows(folder / "held_out.jsonl", [{"prompt": text[:6]} for text in TEXTS[:4]])
    (folder / "reward.py").write_text(REWARD)
    return folder


@pytest.fixture(scope="session")
def ppo_settings(workspace: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a deterministic PPO run in a folder; keyword arguments replace top-level keys, or update sections."""
    base: dict[str, Any] = {
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(workspace / "prompts.jsonl"), "max_prompt_tokens": 32},
        "steps": 10,
        "prompts_per_step": 8,
        "samples_per_prompt": 4,
        "minibatches": 2,
        "epochs": 2,
        "tokens_per_microbatch": 512,
        # An epsilon above the noise of float32 gradients, so that another order of summation moves weights but little.
        "policy": {"learning_rate": 1e-2, "epsilon": 1e-4, "cpus_per_worker": 0.3},
        "critics": {"value": {"learning_rate": 1e-2, "epsilon": 1e-4, "cpus_per_worker": 0.3}},
        "reference": {"cpus_per_worker": 0.2},
        "algorithm": {"kl": {"coefficient": 0.01, "target": 4.0, "horizon": 500}},
        "rewards": [{"kind": "function", "function": f"{workspace}/reward.py:letters", "cpus_per_worker": 0.1}],
        "rollout": {"max_new_tokens": 16, "temperature": 0.9, "deterministic": True, "cpus_per_worker": 0.4},
        "evaluation": {
            "data": {"path": str(workspace / "held_out.jsonl"), "max_prompt_tokens": 32},
            "every_steps": 3,
        },
        "checkpoint": {"every_steps": 4, "keep": 10},
        "tracking": {"wandb": "off", "tensorboard": False},
    }

    def make(output: Path, **changes: Any) -> dict[str, Any]:
        # A copy, so that no test changes what the next one gets.
        settings = copy.deepcopy(base) | {"output": str(output)}
        for key, value in changes.items():
            before = settings.get(key)
            settings[key] = before | value if isinstance(before, dict) and isinstance(value, dict) else value
        return settings

    return make


@pytest.fixture(scope="session", autouse=True)
def kept_engines_end(start_ray: Callable[[], None]) -> Iterator[None]:
    """End the engines that served several runs, before Ray is shut down."""
    yield
    end_kept_engines()


@pytest.fixture
def roles_here(start_ray: Callable[[], None]) -> Iterator[None]:
    """Trainers and reward sources without actors: for runs beside one that has them."""
    start_ray()
    with actors_here():
        yield


@pytest.fixture(scope="session")
def learned(
    ppo_settings: Callable[..., dict[str, Any]], start_ray: Callable[[], None], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a whole PPO run, never interrupted, with its samples in `samples.recorded`.

    It is made from Python, where an event loop runs, as in a notebook.
    """
    start_ray()
    folder = tmp_path_factory.mktemp("learned") / "run"
    settings = ppo_settings(folder, rollout={"record": str(folder.parent / "samples.recorded")})

    async def cell() -> rlhf_ray.Run:
        return rlhf_ray.run(settings)

    with nothing_left():
        run = asyncio.run(cell())
    assert run.status == "finished"
    assert run.model_path == folder / "final"
    assert run.metrics.column("rewards/reward/mean")
    return run.path


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

"""A PPO run of seconds on the real engines: a model from nothing, prompts, a reward that is easy to learn."""

import asyncio
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rlhf_ray
from tests.jobs.actors_here import actors_here, end_kept_engines
from tests.jobs.ppo_runs import write_rows
from tests.leftovers import nothing_left

TEXTS = [
    "The film was wonderful and I would watch it again.",
    "这部电影很好看，演员也很棒。",
    "刚收到货，感觉质量一般，有点失望。",
    "The package arrived late and the box was broken.",
    "Great value for the money, my family loves it!",
]
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

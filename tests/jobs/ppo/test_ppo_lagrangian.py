"""Safe RLHF on real models: without lambda it is PPO, its state goes on, and it keeps costs under their limit."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.jobs.ppo import run as ppo
from rlhf_ray.jobs.ppo import start as ppo_start
from rlhf_ray.jobs.ppo.roles import PPORoles
from rlhf_ray.jobs.ppo.start import start_roles
from rlhf_ray.tracking.names import describe
from tests.jobs.ppo.test_ppo_replay import NoEngines, NoSync
from tests.jobs.ppo_runs import metrics_of, saved_tensors, training_rows, untimed

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

Settings = Callable[..., dict[str, Any]]
Learn = Callable[..., Path]

STEPS = 4
"""Of those that were recorded; the recorded run has a checkpoint after them."""
LIMIT = 0.1
HALF_OF_THE_START = 0.05
"""The untrained model's texts cost 0.095 on average."""

COST = """
def vowels(prompts, completions, **columns):
    return [sum(c in "aeiouAEIOU" for c in text) / max(len(text), 1) for text in completions]
"""


@pytest.fixture(scope="module")
def safe_settings(workspace: Path, ppo_settings: Settings) -> Settings:
    """As `ppo_settings`, and vowels cost something."""
    (workspace / "cost.py").write_text(COST)
    harm = {"kind": "function", "name": "vowels", "function": f"{workspace}/cost.py:vowels", "measures": "cost"}

    def make(output: Path, lagrangian: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
        settings = ppo_settings(output, **changes)
        settings["rewards"].append(harm | {"cpus_per_worker": 0.1})
        settings["critics"]["cost"] = dict(settings["critics"]["value"])
        if lagrangian is not None:
            settings["algorithm"]["lagrangian"] = lagrangian
        return settings

    return make


@pytest.fixture(scope="module")
def replay(learned: Path, safe_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Learn]:
    """Learn from the recorded samples of a run without costs; one start of the roles serves all."""
    folder = tmp_path_factory.mktemp("lagrangian")
    rollout = {"deterministic": False, "replay": str(learned.parent / "samples.recorded")}

    def config(name: str, lagrangian: dict[str, Any], steps: int) -> PPOConfig:
        changes = {"steps": steps, "rollout": rollout, "evaluation": {"data": None}, "checkpoint": {"every_steps": 2}}
        changes["tracking"] = {"samples_per_step": 0}  # which engines would answer
        found = PPOConfig.model_validate(safe_settings(folder / name, lagrangian, **changes))
        assert not list(found.problems())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo_start, "place_engines", NoEngines)
        patch.setattr(ppo_start, "WeightSync", NoSync)
        first = config("none", {}, STEPS)
        with connect(first.cluster, first.groups) as cluster, start_roles(first, cluster) as roles:
            initial = {name: str(folder / f"initial_{name}") for name in roles.trained}
            assert set(initial) == {"policy", "critic", "cost_critic"}
            for name, group in roles.trained.items():
                group.save(initial[name])

            @contextmanager
            def shared_cluster(*_: Any) -> Iterator[Cluster]:
                yield cluster

            @contextmanager
            def shared_roles(*_: Any) -> Iterator[PPORoles]:
                for name, group in roles.trained.items():
                    group.load(initial[name])
                yield roles

            patch.setattr(ppo, "connect", shared_cluster)
            patch.setattr(ppo, "start_roles", shared_roles)

            def run(name: str, lagrangian: dict[str, Any], steps: int = STEPS) -> Path:
                ppo.run(config(name, lagrangian, steps))
                return folder / name

            yield run


def different(expected: Path, found: Path, role: str) -> list[str]:
    """Names of the tensors of a role, weights and moments, that are not equal bit for bit."""
    tensors = [saved_tensors(run, STEPS, role) for run in (expected, found)]
    assert tensors[0].keys() == tensors[1].keys()
    return [name for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])]


def test_without_lambda_it_is_ppo_bit_for_bit(learned: Path, replay: Learn) -> None:
    found = replay("without", {"multiplier": 0, "learning_rate": 0})
    assert not different(learned, found, "policy")
    assert not different(learned, found, "critic")
    for before, after in zip(training_rows(learned)[:STEPS], training_rows(found), strict=True):
        plain = {name: value for name, value in untimed(before).items() if not name.startswith("sync/")}
        assert plain.items() <= untimed(after).items()
        assert after["lambda"] == 0
        assert after["grad_norm/cost_critic"] > 0, "the critic of costs learns all the same"


@pytest.fixture(scope="module")
def constrained(replay: Learn) -> Path:
    return replay("constrained", {"cost_limit": LIMIT, "learning_rate": 2.0, "delay_steps": 1, "window": 48})


def test_lambda_follows_the_costs(constrained: Path, learned: Path) -> None:
    rows = training_rows(constrained)
    means, expected = [row["rewards/vowels/mean"] for row in rows], 1.0
    for step, row in enumerate(rows):
        # 32 samples a step: the window holds them and half of those before.
        assert row["cost"] == pytest.approx(means[step])
        if step > 0:
            expected *= math.exp(2.0 * expected * (row["episode_cost"] - LIMIT))
        assert row["lambda"] == pytest.approx(expected)
        assert row["objective/scores"] == pytest.approx(row["rewards/reward/mean"]), "costs are no part of the reward"
        assert row["grad_norm/cost_critic"] > 0
    assert rows[-1]["lambda"] != 1.0
    names = {name for row in rows for name in row} - {"step", "time"}
    assert not [name for name in sorted(names) if not describe(name).meaning]
    assert {"cost_advantage", "cost_return", "loss/cost_value_avg", "value/cost_explained_variance"} <= names
    assert different(learned, constrained, "policy"), "the costs move the policy"


def test_an_interrupted_run_goes_on_bit_for_bit(constrained: Path, replay: Learn) -> None:
    lagrangian = {"cost_limit": LIMIT, "learning_rate": 2.0, "delay_steps": 1, "window": 48}
    replay("interrupted", lagrangian, steps=2)
    found = replay("interrupted", lagrangian)
    for role in ("policy", "critic", "cost_critic"):
        assert not different(constrained, found, role)
    assert [untimed(row) for row in training_rows(found)] == [untimed(row) for row in training_rows(constrained)]
    manifests = [
        json.loads((run / "checkpoints" / f"step_{STEPS}" / "manifest.json").read_text())["state"]["constraint"]
        for run in (constrained, found)
    ]
    assert manifests[0] == manifests[1]
    assert len(manifests[0]["recent"]) == 48
    assert manifests[0]["updates"] == STEPS


@pytest.mark.slow
def test_costs_come_under_their_limit_while_the_reward_rises(safe_settings: Settings, tmp_path: Path) -> None:
    """And plain PPO, from the same start and with the same seed, leaves them above it."""
    evaluation = safe_settings(tmp_path, None)["evaluation"] | {"every_steps": 40, "samples_per_prompt": 8}
    common: dict[str, Any] = {"steps": 40, "evaluation": evaluation, "checkpoint": {"every_steps": 0}}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, lagrangian in (
        ("plain", {"multiplier": 0, "learning_rate": 0}),
        ("safe", {"cost_limit": HALF_OF_THE_START, "multiplier": 0.5, "learning_rate": 1.0, "maximum": 10.0}),
    ):
        settings = safe_settings(tmp_path / name, lagrangian, **common)
        ppo.run(PPOConfig.model_validate(settings))
        found[name] = [row for row in metrics_of(tmp_path / name) if "eval_reward" in row]
    print({name: [(row["eval_reward"], row["eval_cost"]) for row in rows] for name, rows in found.items()})
    for rows in found.values():
        assert rows[-1]["eval_reward"] > rows[0]["eval_reward"] + 0.2
        assert rows[0]["eval_cost"] > HALF_OF_THE_START
    assert found["plain"][-1]["eval_cost"] > HALF_OF_THE_START
    assert found["safe"][-1]["eval_cost"] < HALF_OF_THE_START

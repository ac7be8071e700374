"""The same recorded samples give the same run, whatever the micro-batches, ranks, sharding and the reference are.

Only the engines are left out: there is nothing for them to do. Policy, critic, reference and reward run as in any job.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.jobs.ppo import run as ppo
from rlhf_ray.jobs.ppo import start as ppo_start
from tests.jobs.ppo_runs import saved_weights, training_rows, untimed

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

Settings = Callable[..., dict[str, Any]]
STEPS = 4
"""Of those that were recorded; the recorded run has a checkpoint after them."""

TOLERANCE = 1e-4
"""Of a weight after sixteen optimizer steps: what another order of float32 sums makes of them."""
METRICS_TOLERANCE = 1e-3
MEASURED_WITH_REFERENCE = ("objective/kl", "objective/kl_coefficient", "objective/non_score_reward")


class NoEngines:
    """Stands where the engines' actors are."""

    name = "rollout"
    handles = (None,)
    starting = ()
    load_seconds = 60.0

    def __init__(self, cluster: Any, model: ModelConfig, rollout: RolloutConfig, **_: Any) -> None:
        self.cluster = cluster
        cluster.layout.add(self.name, rollout)

    def begin(self, method: str) -> None:
        """There is nothing to load."""


class NoSync:
    """Stands where weights are sent."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.version = -1

    def learned(self, version: int) -> None:
        """Nobody comes back to get it."""

    def read(self, texts: Any) -> None:
        """There is no check that would read them."""

    def __call__(self, version: int, members: list[int]) -> dict[str, float]:
        return {}


@pytest.fixture
def replay(
    learned: Path, ppo_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Path]:
    """Learn the first steps of the recorded run again, with other settings."""
    monkeypatch.setattr(ppo_start, "place_engines", NoEngines)
    monkeypatch.setattr(ppo_start, "WeightSync", NoSync)

    def run(name: str, **changes: Any) -> Path:
        rollout = {"deterministic": False, "replay": str(learned.parent / "samples.recorded")}
        settings = ppo_settings(
            tmp_path / name,
            steps=STEPS,
            rollout=rollout,
            evaluation={"data": None},
            tracking={"samples_per_step": 0},
            **changes,
        )
        ppo.run(PPOConfig.model_validate(settings))
        return tmp_path / name

    return run


def assert_same(expected: Path, found: Path) -> None:
    rows = [[untimed(row) for row in training_rows(run)[:STEPS]] for run in (expected, found)]
    for before, after in zip(*rows, strict=True):
        for name in before.keys() | after.keys():
            if not name.startswith("sync/"):
                assert after[name] == pytest.approx(before[name], rel=METRICS_TOLERANCE, abs=METRICS_TOLERANCE), name
    for role in ("policy", "critic"):
        weights = [saved_weights(run, STEPS, role) for run in (expected, found)]
        assert weights[0].keys() == weights[1].keys()
        for name, value in weights[0].items():
            assert float((weights[1][name] - value).abs().max()) <= TOLERANCE, f"{role}: {name}"


def test_micro_batches_ranks_and_sharding_change_nothing(
    learned: Path, replay: Callable[..., Path], ppo_settings: Settings
) -> None:
    """As one rank at ZeRO 0 found it: two ranks, policy and reference at ZeRO 3, critic at ZeRO 2, smaller passes."""
    found = replay(
        "sharded",
        tokens_per_microbatch=100,
        policy={"workers": 2, "zero_stage": 3, "cpus_per_worker": 0.2},
        critics={"value": {**ppo_settings(Path())["critics"]["value"], "workers": 2, "zero_stage": 2}},
        reference={"workers": 2, "zero_stage": 3},
    )
    assert_same(learned, found)


@pytest.mark.slow
def test_a_reference_without_weight_changes_nothing(replay: Callable[..., Path]) -> None:
    """Off, and the policy on two ranks at ZeRO 2; on with next to no weight, and the policy on one rank."""
    off = replay(
        "off",
        algorithm={"kl": {"coefficient": 0.0}},
        policy={"workers": 2, "zero_stage": 2, "cpus_per_worker": 0.2},
    )
    on = replay("on", algorithm={"kl": {"coefficient": 1e-12}})
    for row in training_rows(off):
        assert row["objective/kl"] == 0
    assert training_rows(on)[-1]["objective/kl"] > 0.1
    for run in (off, on):
        rewrite_without_kl(run)
    assert_same(off, on)


def rewrite_without_kl(run: Path) -> None:
    """Leave out what only a run with a reference measures."""
    rows = [row | dict.fromkeys(MEASURED_WITH_REFERENCE, 0) for row in training_rows(run)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

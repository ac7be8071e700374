"""In which order the roles of a step have the devices that they share."""

from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import ray

from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.jobs.ppo.turns import ROLLOUT, DeviceTurns
from rlhf_ray.roles.trainer import SharedBatch
from rlhf_ray.runs.engines import SharedEngines
from tests.jobs.ppo import colocated

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedBatch, "put", classmethod(lambda cls, batch: cls(batch, None)))
    monkeypatch.setattr(ray, "put", lambda value: value)


def preset(name: str, *changes: str) -> PPOConfig:
    config = load_job("ppo", [str(CONFIGS / f"{name}.yaml"), *changes], check_files=False)
    assert isinstance(config, PPOConfig)
    return config


def acts(config: PPOConfig, **options: Any) -> list[str]:
    """What happens, in order; what a role does several times in a row stands once."""
    events: list[str] = []
    colocated.run(config, lambda role, act: events.append(f"{role} {act}"), **options)
    return [event for event, _ in groupby(events)]


FIRST_SYNC = [
    *["policy frees its cache", "rollout sleeps at level 2", "rollout wakes its weights", "policy wakes"],
    *["policy sends", "rollout receives", "policy probes"],
    *["policy sleeps", "rollout wakes its kv_cache", "rollout probes"],
]
STEP = [
    *["rollout answers", "rollout sleeps at level 2"],
    *["rewards wakes", "rewards reads", "rewards sleeps"],
    *["reference wakes", "reference reads", "reference sleeps"],
    *["policy wakes", "policy reads", "policy sleeps"],
    *["critic wakes", "critic reads", "critic learns", "critic sleeps"],
    *["policy wakes", "policy learns", "policy frees its cache", "rollout wakes its weights"],
    *["policy sends", "rollout receives", "policy probes"],
    *["policy sleeps", "rollout wakes its kv_cache", "rollout probes"],
]
SAVING = [
    *["rollout sleeps at level 1", "policy wakes", "policy saves", "policy sleeps", "critic wakes", "critic saves"],
]


def test_where_all_share_all_devices_each_is_awake_alone_and_weights_before_the_cache() -> None:
    assert acts(preset("ppo_7b_8gpu")) == [*FIRST_SYNC, *STEP, *STEP, *SAVING]


def test_policy_and_critic_share_and_nobody_sleeps_for_engines_elsewhere() -> None:
    """Engines, reference and rewards have devices of their own: they are asked as answers come."""
    apart = preset("ppo_7b_4node", "--critics.value.workers", "16", "--policy.workers", "16")
    events = acts(apart, steps=1)
    assert [event for event in events if event.startswith(("policy", "critic"))] == [
        *["policy frees its cache", "policy wakes", "policy sends", "policy probes"],
        *["policy reads", "policy sleeps", "critic wakes", "critic reads", "critic learns"],
        *["critic sleeps", "policy wakes", "policy learns", "policy frees its cache", "policy sends", "policy probes"],
        *["policy saves", "policy sleeps", "critic wakes", "critic saves"],
    ]
    assert not any(" sleeps" in event for event in events if event.startswith(("rollout", "rewards", "reference")))
    assert events.index("rewards reads") < events.index("policy reads")


def test_two_pairs_that_share_devices_take_turns_at_the_same_time() -> None:
    """Policy with critic, engines with reference and rewards."""
    turns = DeviceTurns(
        shares={
            "policy": {"critic"},
            "critic": {"policy"},
            **{name: {"rollout", "reference", "rewards"} - {name} for name in ("rollout", "reference", "rewards")},
        }
    )
    assert turns.rounds(["rewards", "reference", "policy", "critic"]) == [
        ["rewards", "policy"],
        ["reference", "critic"],
    ]
    assert DeviceTurns().rounds(["rewards", "policy"]) == [["rewards", "policy"]]


def test_weights_are_kept_where_no_sync_follows() -> None:
    """Between an evaluation and the next step, and between the rounds of a filter whose rewards share devices."""
    events = acts(preset("ppo_7b_8gpu"), steps=1, evaluates=True)
    evaluation = [
        *["rollout answers", "rollout sleeps at level 1", "rewards wakes", "rewards reads"],
        *["rewards sleeps", "rollout wakes its weights and kv_cache", "rollout answers", "rollout sleeps at level 2"],
    ]
    assert events[: len(FIRST_SYNC) + len(evaluation)] == [*FIRST_SYNC, *evaluation]


def test_an_engine_that_gets_adapters_alone_keeps_its_weights() -> None:
    events = acts(preset("ppo_lora_7b_1gpu", "--rollout.adapter", "reload"), steps=1)
    assert "rollout sleeps at level 1" in events
    assert "rollout sleeps at level 2" not in events


def test_what_engines_hold_is_asked_for_once() -> None:
    told: list[Any] = []

    class Group:
        def turn(self, method: str, how: Any) -> None:
            told.append(how)

    group: Any = Group()
    engines = SharedEngines(group, get_all_weights=True)
    turns = DeviceTurns({ROLLOUT: engines})
    turns.give(ROLLOUT)
    assert told == [], "they are awake"
    turns.give_for_sync()
    turns.give_for_sync()
    turns.give(ROLLOUT)
    assert told == [1, ["weights"], ["kv_cache"]], "level 1: nobody said that weights follow"
    turns.expect_sync()
    turns.give_for_sync()
    turns.expect_sync(False)
    assert told[3:] == [2, ["weights"]]


def test_a_role_that_starts_anew_finds_its_devices_free() -> None:
    told: list[str] = []
    roles: Any = {name: colocated.Trainer(name, lambda role, act: told.append(f"{role} {act}")) for name in "abc"}
    turns = DeviceTurns(roles, {"a": {"b"}, "b": {"a"}, "c": {"d"}})
    turns.clear_for(["b"])
    assert told == ["a sleeps"], "c is on other devices, and the dead one is not asked"
    turns.give("a")
    assert told == ["a sleeps", "b sleeps", "a wakes"]

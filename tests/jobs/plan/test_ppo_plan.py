"""What `rlhf plan` says of a PPO run is what the run does."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from rlhf_ray.cluster.placement import Layout
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.jobs.ppo import start as ppo_start
from rlhf_ray.jobs.ppo.roles import critic_units, role_placements, thread_demand, uses
from rlhf_ray.jobs.ppo.turns import DeviceTurns
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.runs.layouts import checked_layouts
from rlhf_ray.training.process import ThreadDemand

REWARD = {"kind": "function", "function": "judge.py:right"}
CONFIGS = Path(__file__).parents[3] / "configs"


class Placed:
    """A role that takes its place and does nothing."""

    def __init__(self, cluster: Any, name: str, placement: Any) -> None:
        cluster.layout.add(name, placement)
        self.name, self.actors = name, self

    def __getattr__(self, method: str) -> Any:
        return lambda *_, **__: None


class PlacedRewards(Placed):
    """All reward sources."""

    groups: ClassVar[dict[str, Any]] = {}

    def __init__(self, cluster: Any, rewards: Any, *_: Any, **__: Any) -> None:
        for reward in rewards:
            super().__init__(cluster, f"rewards.{reward.name}", reward)


@pytest.mark.parametrize("preset", ["ppo_7b_4node", "ppo_70b_64gpu", "safe_rlhf_7b_8gpu", "ppo_lora_7b_1gpu"])
def test_a_run_places_its_roles_as_planned(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_job("ppo", [str(CONFIGS / f"{preset}.yaml")], check_files=False)

    def place_engines(cluster: Any, model: Any, rollout: Any, **_: Any) -> Placed:
        return Placed(cluster, "rollout", rollout)

    @contextmanager
    def pool(*_: Any, **__: Any) -> Any:
        yield None

    fakes = {
        "TrainerGroup": lambda cluster, name, _, __, trainer, **___: Placed(cluster, name, trainer),
        "place_engines": place_engines,
        "RewardSources": PlacedRewards,
        "open_pool": pool,
        "SingleTurn": lambda *_: None,
        "_sync": lambda *_: None,
        "_turns": lambda *_: DeviceTurns(),
        "load_tokenizer": lambda _: [],
        "Encoder": lambda _: None,
        "ready_together": lambda _: {"rollout": []},
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(ppo_start, name, fake)
    cluster: Any = SimpleNamespace(layout=Layout(config.groups), deadlines=config.cluster.deadlines)
    with ppo_start.start_roles(config, cluster):
        run = cluster.layout.slots
    [part] = checked_layouts(config)
    planned = part.layout.slots
    names = dict(zip(role_placements(config), config.placements(), strict=True))
    assert {".".join(map(str, names[role])): slots for role, slots in run.items()} == planned


def test_a_run_takes_turns_by_the_table_of_phases() -> None:
    config = small_run()
    expected = {phase: [s.replace("critics", "critic") for s in names] for phase, names in config.phases().items()}
    assert uses(config) == expected
    assert (expected["generate"], expected["sync"]) == (["rollout"], ["policy", "rollout"])
    cost = {"kind": "function", "function": "judge.py:harm", "measures": "cost"}
    constraint = {"lagrangian": {"cost_limit": 0.3}}
    safe = small_run(critics={"value": {}, "cost": {}}, rewards=[REWARD, cost], algorithm=constraint)
    assert uses(safe)["train"] == ["critic", "cost_critic", "policy"]


def test_a_policy_sleeps_through_the_scoring_of_a_batch_that_it_does_not_read() -> None:
    assert uses(small_run())["score"] == ["rewards", "reference", "policy", "critic"]
    sampled = {"old_logprobs": "engine"}
    assert uses(small_run(algorithm=sampled))["score"] == ["rewards", "reference", "critic"]
    its_own_reference = small_run(algorithm=sampled, policy={"lora": {}})
    assert uses(its_own_reference)["score"] == ["rewards", "reference", "policy", "critic"]


def small_run(**sections: Any) -> PPOConfig:
    return crowded_run(**{"rewards": [REWARD]} | sections)


def crowded_run(**sections: Any) -> PPOConfig:
    given = {"output": "run", "model": {"path": "model"}, "data": {"path": "prompts.jsonl"}}
    return PPOConfig.model_validate(given | sections)


def test_networks_count_the_threads_of_those_beside_them() -> None:
    grpo = crowded_run(
        algorithm={"advantages": "grpo"},
        samples_per_prompt=4,
        policy={"threads": 2},
        reference={"threads": 1},
        rollout={"threads": 2},
        rewards=[{"kind": "function", "function": "judge.py:right", "threads": 2}],
    )
    assert thread_demand("policy", grpo) == ThreadDemand(inferring=3, training=2)
    assert thread_demand("reference", grpo) == ThreadDemand(inferring=3)
    sampled = grpo.model_copy(update={"algorithm": grpo.algorithm.model_copy(update={"old_logprobs": "engine"})})
    assert thread_demand("policy", sampled) == ThreadDemand(inferring=0, training=2), (
        "it takes the engines' log-probabilities"
    )
    assert thread_demand("reference", sampled) == ThreadDemand(inferring=1)
    adapted = sampled.model_copy(update={"policy": sampled.policy.model_copy(update={"lora": LoraConfig()})})
    assert thread_demand("policy", adapted).inferring > 0, "with its adapter off it is the reference"
    ppo = crowded_run(
        policy={"threads": 2, "workers": 2},
        critics={"value": {"threads": 3}},
        rewards=[{"kind": "model", "path": "reward", "cpus_per_worker": 0.1}],
        rollout={"cpus_per_worker": 0.1},
        groups={"main": {"cpus_per_node": 4}},
    )
    assert thread_demand("policy", ppo) == thread_demand("critic", ppo) == ThreadDemand(inferring=9, training=7)


def test_machines_and_gpus_of_their_own_crowd_nobody() -> None:
    config = crowded_run(
        algorithm={"advantages": "grpo"},
        samples_per_prompt=4,
        policy={"threads": 2, "workers": 2, "cpus_per_worker": 2},
        reference={"threads": 1, "on": "other"},
        rewards=[{"kind": "model", "path": "reward", "gpus_per_worker": 1, "on": "other"}],
        rollout={"on": "other"},
        groups={"main": {"nodes": 2, "cpus_per_node": 2}, "other": {"gpus_per_node": 1}},
    )
    assert thread_demand("policy", config) == ThreadDemand(inferring=2, training=2)
    assert thread_demand("reference", config) == ThreadDemand(inferring=1)


def test_a_critic_begins_in_the_units_of_the_rewards_that_it_foretells(tmp_path: Path) -> None:
    ScoreStatistics(texts=9, mean=1.0, std=2.5, median=0.0).write(tmp_path)
    config = load_job("ppo", [str(CONFIGS / "ppo_7b_8gpu.yaml")], check_files=False)
    assert isinstance(config, PPOConfig)
    [name] = config.critics

    def units(critic: str | None = None, **source: Any) -> ScoreStatistics | None:
        rewards = [ModelReward(path=str(tmp_path), **source)]
        critics = {name: config.critics[name].model_copy(update={"path": critic})}
        return critic_units(config.model_copy(update={"rewards": rewards, "critics": critics}), name)

    kept = ScoreStatistics.read(str(tmp_path))
    assert units() == units(str(tmp_path)) == kept
    assert units(normalise=False) is None
    assert units("policy") is None, "another model's head speaks of something else"

"""The roles of a PPO run: Ray actors for policy, critics, reference, rewards and engines, started side by side."""

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleFailed
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.cluster.placement import Layout, lay_out
from rlhf_ray.cluster.supervision import Health
from rlhf_ray.cluster.worker_environment import CPU_THREADS
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath
from rlhf_ray.config.rewards import ModelReward, RewardSource
from rlhf_ray.config.training import COST_CRITIC
from rlhf_ray.experience.costs import COST_CRITIC_ROLE
from rlhf_ray.jobs.ppo.turns import DeviceTurns
from rlhf_ray.models.score_statistics import ScoreStatistics, statistics_of
from rlhf_ray.roles.policy_sync import PolicySync
from rlhf_ray.roles.scorer import RewardSources
from rlhf_ray.roles.trainer import Pending, SharedBatch, TrainerGroup
from rlhf_ray.rollout.interfaces import GroupSource
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.remembered import RememberedSource
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.runs.engines import engine_or_reason
from rlhf_ray.schedule import SCORE, TRAIN
from rlhf_ray.training.process import ThreadDemand

logger = logging.getLogger(__name__)


@dataclass
class PPORoles:
    """Everything that a PPO driver talks to."""

    policy: TrainerGroup
    critics: dict[str, TrainerGroup]
    """By role: `critic` where the estimator needs one, `cost_critic` where costs have one."""
    reference: TrainerGroup | None
    """None where KL has no weight, and where the policy without its adapter is the reference."""
    rewards: RewardSources
    engines: ActorGroup
    pool: RolloutPool
    source: GroupSource
    """The pool, or a recording of it, or a replay in its place."""
    sync: PolicySync
    renew: Callable[[int], RemoteEngine]
    """Starts an engine again, with the weights of the others."""
    tokenizer: Any
    turns: DeviceTurns
    """Who has the devices; only roles that share some take turns."""
    memory: RememberedSource | None = None
    """Finished groups of batches under way; None where none is under way while the policy learns."""
    adapter_off: bool = False
    """Whether the reference is the policy with its adapter switched off."""

    @property
    def trained(self) -> dict[str, TrainerGroup]:
        """The models that learn, by name."""
        return {"policy": self.policy, **self.critics}

    def submit_reference(self, shared: SharedBatch) -> Pending[dict[str, np.ndarray]] | None:
        """Submit log-probabilities under the frozen starting model; None where nobody asks for them."""
        if self.adapter_off:
            return self.policy.submit_logprobs(shared, adapter=False)
        return None if self.reference is None else self.reference.submit_logprobs(shared)

    def replace_broken_engines(self, error: RoleFailed | DeadlineExceeded) -> None:
        """Start engines anew that no longer answer, or hang in a transfer; one that does not come back stays out.

        Raises:
            RoleFailed, DeadlineExceeded: `error`, where every engine answers; or that of a role that makes no room.
        """
        health = self.engines.health(method="health")
        stuck = self.sync.stuck
        broken = [number for number in self.pool.serving if health[number] is Health.DOWN or number in stuck]
        if error.role == self.engines.name and error.rank is not None and error.rank not in broken:
            broken.append(error.rank)
        if not broken:
            raise error
        for number in broken:
            self.engines.kill_one(number)  # it would not answer when the others wake
        for number in broken:
            logger.warning("rollout engine %d: %s; starting it again", number, error)
            # With weights already: requests of batches under way go to it at once.
            self.pool.replace(number, engine_or_reason(self.renew, self.engines, number))

    @property
    def trainers(self) -> dict[str, TrainerGroup]:
        """The models that DeepSpeed runs, by name; the reference among them."""
        return self.trained | ({self.reference.name: self.reference} if self.reference is not None else {})

    def is_reference(self, role: str) -> bool:
        """Tell whether the role is the frozen reference, which has no state to lose."""
        return self.reference is not None and role == self.reference.name

    def restart_trainer(self, death: RoleDied, *, from_start: bool) -> None:
        """Start the ranks of a dead model anew, with the weights of the run's first step.

        Args:
            death: of one of `trainers`.
            from_start: no checkpoint follows, so that all models that learn shall be as at first.

        Raises:
            RoleLost: a rank failed too often. RoleDied: another model died meanwhile.
        """
        logger.warning("%s; starting it again", death)
        others = [name for name in self.trained if name != death.role] if from_start else []
        self.turns.expect_sync()
        for name in (death.role, *others):
            self.turns.clear_for([name])
            self.trainers[name].restart((death.rank or 0) if name == death.role else None)
            self.turns.asleep.discard(name)
        if death.role == self.policy.name or from_start:
            self.sync.prepare()


def critic_model(config: PPOConfig, name: str) -> ModelConfig:
    """Return the model that a critic starts from, to be read with the policy's tokenizer."""
    tokenizer = config.model.tokenizer or config.model.path
    return config.model.model_copy(update={"path": config.critic_path(name), "tokenizer": tokenizer})


def critic_units(config: PPOConfig, name: str) -> ScoreStatistics | None:
    """Return the units in which a critic's first values shall be: those of the rewards, where their model is its start.

    None where it begins as another model, or where scores stay as their model gives them.
    """
    if name == COST_CRITIC:
        return None
    path = config.critic_path(name)
    alone = (source for source in config.rewards if isinstance(source, ModelReward) and not source.ensemble)
    return next((units for source in alone if source.path == path for units in statistics_of(source)), None)


def cost_weight(algorithm: AlgorithmConfig) -> float:
    """Return what costs weigh in the reward itself; 0 where they have a critic, or are none."""
    lagrangian = algorithm.lagrangian
    return lagrangian.multiplier if lagrangian is not None and lagrangian.place == "reward" else 0.0


def critic_role(name: str) -> str:
    """Return the role of a critic, by its name in the config."""
    return COST_CRITIC_ROLE if name == COST_CRITIC else "critic"


def uses(config: PPOConfig) -> dict[str, list[str]]:
    """Return the roles that each phase needs."""
    critics = [critic_role(name) for name in config.critics]
    return {
        phase: [role for section in sections for role in (critics if section == "critics" else [section])]
        for phase, sections in config.phases().items()
    }


def role_placements(config: PPOConfig) -> dict[str, PlacementConfig]:
    """Return where the roles go, by the names that they have in the run, in the order in which they are placed."""
    return {_role(config, key): placement for key, placement in config.placements().items()}


def planned_layout(config: PPOConfig) -> Layout:
    """Return where all roles will be, before any of them is placed.

    Raises:
        DoesNotFit: the roles do not fit their groups.
    """
    return lay_out(config.groups, role_placements(config))


def turn_takers(config: PPOConfig) -> set[str]:
    """Name the roles that take turns on shared devices, known before any is placed; rewards count as one.

    Raises:
        DoesNotFit: the roles do not fit their groups.
    """
    layout = planned_layout(config)
    return {role.partition(".")[0] for role in layout.slots if layout.sharing(role)}


def thread_demand(role: str, config: PPOConfig) -> ThreadDemand:
    """Compute threads that the networks on a role's machines ask for, where it and they are on CPU.

    Raises:
        DoesNotFit: the roles do not fit their groups.
    """
    return ThreadDemand(inferring=_threads_beside(role, SCORE, config), training=_threads_beside(role, TRAIN, config))


def _threads_beside(role: str, phase: str, config: PPOConfig) -> int:
    """Count threads of all networks that compute in a phase on the role's fullest machine; 0 where it rests."""
    placements = role_placements(config)
    awake = uses(config)[phase]
    if role not in placements or role not in awake:
        return 0
    slots = lay_out(config.groups, placements).slots
    asked: Counter[tuple[str, int]] = Counter()
    for name, placement in placements.items():
        is_network = not isinstance(placement, RewardSource) or placement.is_network
        if name.partition(".")[0] in awake and is_network and not placement.gpus_per_worker:
            for slot in slots[name]:
                asked[slot.group, slot.bundle] += placement.threads or CPU_THREADS
    return max(asked[slot.group, slot.bundle] for slot in slots[role])


def _role(config: PPOConfig, key: KeyPath) -> str:
    match key:
        case ("critics", str(name)):
            return critic_role(name)
        case ("rewards", int(index)):
            return f"rewards.{config.rewards[index].name}"
    return str(key[0])

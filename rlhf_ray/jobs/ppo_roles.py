"""The roles of a PPO run: Ray actors for policy, critics, reference, rewards and engines, started side by side."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleFailed, RoleLost
from rlhf_ray.cluster.group import ActorGroup, ready_together
from rlhf_ray.cluster.supervision import Health
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.parts import critic_path
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.jobs.constraint import COST_CRITIC_ROLE
from rlhf_ray.jobs.engines import open_pool, place_engines, restart_engine
from rlhf_ray.jobs.ppo_plan import critic_role, crowd_of, turn_takers, uses
from rlhf_ray.jobs.recovery import RESTARTS
from rlhf_ray.models.loading import load_tokenizer, policy_config
from rlhf_ray.roles.adapter_sync import AdapterSync
from rlhf_ray.roles.policy_sync import PolicySync
from rlhf_ray.roles.scorer import RewardSources
from rlhf_ray.roles.trainer import Pending, SharedBatch, TrainerGroup
from rlhf_ray.roles.weight_sync import WeightSync
from rlhf_ray.rollout.engine_arguments import choose_transport
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.recording import GroupSource, Recorder, Replay
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from rlhf_ray.schedule import GENERATE, SYNC, Sleeper, Turns
from rlhf_ray.transfer.group import Transport
from rlhf_ray.transfer.verification import probe_sequences

MEGABYTE = 2**20

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
    tokenizer: Any
    turns: Turns
    """Who works in which phase; only roles that share devices take turns."""
    adapter_off: bool = False
    """Whether the reference is the policy with its adapter switched off."""

    @property
    def trained(self) -> dict[str, TrainerGroup]:
        """The models that learn, by name."""
        return {"policy": self.policy, **self.critics}

    def submit_reference(self, shared: SharedBatch) -> Pending[dict[str, np.ndarray]] | None:
        """Log-probabilities under the model that the policy began from; None where nobody asks for them."""
        if self.adapter_off:
            return self.policy.submit_logprobs(shared, adapter=False)
        return None if self.reference is None else self.reference.submit_logprobs(shared)

    def replace_broken_engines(self, error: RoleFailed | DeadlineExceeded) -> None:
        """Start engines anew that no longer answer, or hang in a transfer; raises `error` where there are none."""
        health = self.engines.health(method="health")
        stuck = self.sync.stuck
        broken = [number for number in self.pool.serving if health[number] is Health.DOWN or number in stuck]
        if error.role == self.engines.name and error.rank is not None and error.rank not in broken:
            broken.append(error.rank)
        if not broken:
            raise error
        for number in broken:
            logger.warning("rollout engine %d: %s; starting it again", number, error)
            engine: RemoteEngine | None = None
            try:
                with self.turns.during(GENERATE):  # the policy makes room on devices that an engine shares with it
                    engine = restart_engine(self.engines, number)
            except RoleLost as lost:
                if self.pool.serving == [number]:
                    raise
                logger.warning("rollout engine %d stays out: %s", number, lost)
            self.pool.replace(number, engine)

    @property
    def trainers(self) -> dict[str, TrainerGroup]:
        """The models that DeepSpeed runs, by name; the reference among them."""
        return self.trained | ({self.reference.name: self.reference} if self.reference is not None else {})

    def is_reference(self, role: str) -> bool:
        """Whether the role is the frozen reference, which has no state to lose."""
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
        self.turns.clear_for([death.role, *others])
        self.trainers[death.role].restart(death.rank or 0)
        for name in others:
            self.trained[name].restart(failed_rank=None)
        if death.role == self.policy.name or from_start:
            self.sync.prepare()


@contextmanager
def start_roles(config: PPOConfig, cluster: Cluster) -> Iterator[PPORoles]:
    """Start all roles at once, and wait until each has loaded its model.

    Raises:
        DoesNotFit: a role has no room in its group. RoleError: a role did not start. BadInput: a model cannot be used.
    """
    tokenizer = load_tokenizer(config.model)
    crowded, asleep = turn_takers(config), set()

    def settle(name: str, role: TrainerGroup | RewardSources) -> None:
        """Where devices are shared, each loads alone and leaves them to the next; elsewhere all load at once."""
        if name in crowded:
            role.ready()
            role.clear()
            asleep.add(name)

    policy_steps = (config.steps - config.algorithm.critic_warmup_steps) * config.epochs * config.minibatches
    policy = _trainer(cluster, config, "policy", config.model, config.policy, total_steps=max(policy_steps, 1))
    settle("policy", policy)
    engines = place_engines(
        cluster,
        config.model,
        config.rollout,
        transport=lambda: _transport(config, cluster),
        seed=config.seed,
        max_tokens=longest_sequence(config),
        lora=config.policy.lora if config.rollout.adapter == "reload" else None,
    )
    starting = [] if engines.name in crowded else engines.submit("start")
    critics: dict[str, TrainerGroup] = {}
    total_steps = config.steps * config.epochs * config.minibatches
    for key, critic in config.critics.items():
        role, model = critic_role(key), critic_model(config, key)
        critics[role] = _trainer(cluster, config, role, model, critic, total_steps=total_steps)
        settle(role, critics[role])
    reference = None
    compares = config.algorithm.kl.coefficient > 0 or config.algorithm.kl.target is not None
    if compares and config.policy.lora is None:
        frozen = TrainerConfig(**config.reference.model_dump())
        reference = _trainer(cluster, config, "reference", config.model, frozen, total_steps=1, trainable=False)
        settle("reference", reference)
    rewards = RewardSources(
        cluster,
        config.rewards,
        config.tokens_per_microbatch,
        max_restarts=RESTARTS,
        cost_weight=cost_weight(config.algorithm),
    )
    settle("rewards", rewards)

    seconds = cluster.deadlines.start_seconds
    workers = engines.wait(starting or engines.submit("start"), phase="start", seconds=seconds)
    ready_together([role.actors for role in (policy, *critics.values(), reference) if role is not None])
    rewards.ready()
    sync = _sync(config, cluster, policy, engines, workers, len(tokenizer))

    trainers = {role.name: role for role in (policy, *critics.values(), reference) if role is not None}
    turns = Turns(_sleepers(trainers, engines, rewards), uses(critics), asleep)

    def renew(number: int) -> RemoteEngine:
        with turns.during(GENERATE):  # also where it is missed in a sync: it does not start beside the policy
            engine = restart_engine(engines, number)
        if sync.version >= 0:
            with turns.during(SYNC):
                sync.catch_up(number)
        return engine

    turn = SingleTurn(tokenizer, Sampling.from_config(config.rollout))
    with open_pool(engines, turn, deterministic=config.rollout.deterministic, renew=renew) as pool:
        source = _source(config, pool)
        adapter_off = compares and config.policy.lora is not None
        yield PPORoles(policy, critics, reference, rewards, engines, pool, source, sync, tokenizer, turns, adapter_off)


def _sleepers(trainers: Mapping[str, TrainerGroup], engines: ActorGroup, rewards: RewardSources) -> dict[str, Sleeper]:
    """The roles that share devices, by the names that `uses` has for them."""
    layout = engines.cluster.layout
    sleepers: dict[str, Sleeper] = {name: role for name, role in trainers.items() if layout.sharing(name)}
    if layout.sharing(engines.name):
        sleepers["rollout"] = engines
    if rewards.shares_devices:
        sleepers["rewards"] = rewards
    return sleepers


def _sync(
    config: PPOConfig,
    cluster: Cluster,
    policy: TrainerGroup,
    engines: ActorGroup,
    workers: list[int],
    tokenizer_size: int,
) -> PolicySync:
    """All weights, with the adapter merged if there is one; or the adapter alone."""
    # A tokenizer may have more ids than the embedding has rows.
    vocabulary = min(tokenizer_size, policy_config(config.model).get_text_config().vocab_size)
    verified: dict[str, Any] = {
        "dtype": config.model.dtype,
        "tolerance": config.rollout.sync_tolerance,
        "probes": probe_sequences(vocabulary, max_tokens=longest_sequence(config) - 1),
    }
    if config.rollout.adapter == "reload":
        return AdapterSync(policy, engines, **verified)
    return WeightSync(
        policy,
        engines,
        engine_workers=workers,
        transport=_transport(config, cluster),
        bucket_bytes=int(config.rollout.bucket_megabytes * MEGABYTE),
        **verified,
    )


def critic_model(config: PPOConfig, name: str) -> ModelConfig:
    """What a critic starts from, to be read with the policy's tokenizer."""
    tokenizer = config.model.tokenizer or config.model.path
    return config.model.model_copy(update={"path": critic_path(config, name), "tokenizer": tokenizer})


def cost_weight(algorithm: AlgorithmConfig) -> float:
    """What costs weigh in the reward itself; 0 where they have a critic, or are none."""
    lagrangian = algorithm.lagrangian
    return lagrangian.multiplier if lagrangian is not None and lagrangian.place == "reward" else 0.0


def longest_sequence(config: PPOConfig) -> int:
    """Tokens of the longest prompt and response together."""
    prompts = [config.data.max_prompt_tokens]
    if config.evaluation.data is not None:
        prompts.append(config.evaluation.data.max_prompt_tokens)
    return max(prompts) + config.rollout.max_new_tokens


def _trainer(
    cluster: Cluster,
    config: PPOConfig,
    name: str,
    model: ModelConfig,
    trainer: TrainerConfig,
    *,
    total_steps: int,
    trainable: bool = True,
) -> TrainerGroup:
    return TrainerGroup(
        cluster,
        name,
        "critic" if name in ("critic", COST_CRITIC_ROLE) else "policy",
        model,
        trainer,
        tokens_per_microbatch=config.tokens_per_microbatch,
        total_steps=total_steps,
        seed=config.seed,
        temperature=config.rollout.temperature,
        trainable=trainable,
        max_restarts=RESTARTS,
        crowd=crowd_of(name, config),
    )


def _transport(config: PPOConfig, cluster: Cluster) -> Transport:
    return choose_transport(config.rollout, cluster.layout.overlap("rollout", "policy"))


def _source(config: PPOConfig, pool: RolloutPool) -> GroupSource:
    if config.rollout.replay is not None:
        return Replay(Path(config.rollout.replay))
    if config.rollout.record is not None:
        return Recorder(pool, Path(config.rollout.record))
    return pool

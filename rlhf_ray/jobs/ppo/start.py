"""The start of a PPO run: its roles placed in one order, loaded side by side, or in turns where they share devices."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleFailed
from rlhf_ray.cluster.group import ActorGroup, ready_together
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.experience.costs import COST_CRITIC_ROLE
from rlhf_ray.jobs.ppo.roles import (
    PPORoles,
    cost_weight,
    critic_model,
    critic_role,
    critic_units,
    planned_layout,
    thread_demand,
    turn_takers,
)
from rlhf_ray.jobs.ppo.turns import REWARDS, ROLLOUT, DeviceTurns, Sleeper
from rlhf_ray.models.loading import load_tokenizer, policy_config
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.roles.policy_sync import AdapterSync, PolicySync, WeightSync
from rlhf_ray.roles.scorer import RewardSources
from rlhf_ray.roles.trainer import TrainerGroup
from rlhf_ray.rollout.engine_arguments import choose_transport
from rlhf_ray.rollout.episodes import Episodes, TurnLimits
from rlhf_ray.rollout.forked_environments import ForkedEnvironments
from rlhf_ray.rollout.interfaces import GroupSource, Rollout
from rlhf_ray.rollout.recording import Recorder, Replay
from rlhf_ray.rollout.remembered import RememberedSource
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from rlhf_ray.runs.engines import SharedEngines, open_pool, place_engines, restart_engine
from rlhf_ray.runs.recovery import RESTARTS
from rlhf_ray.transfer.errors import ManifestMismatch
from rlhf_ray.transfer.group import Transport
from rlhf_ray.transfer.verification import probe_sequences

MEGABYTE = 2**20

logger = logging.getLogger(__name__)


@contextmanager
def start_roles(config: PPOConfig, cluster: Cluster) -> Iterator[PPORoles]:
    """Start all roles at once, and wait until each has loaded its model.

    Raises:
        DoesNotFit: a role has no room in its group. RoleError: a role did not start. BadInput: a model cannot be used.
    """
    tokenizer = load_tokenizer(config.model)
    start = _Start(config, cluster)
    # In the order in which `rlhf plan` places them: it decides who shares devices with whom.
    policy = start.policy()
    engines = start.engines()
    critics = start.critics()
    reference = start.reference() if config.has_kl and not config.adapter_off_is_reference else None
    rewards = start.rewards()

    trainers = {role.name: role for role in (policy, *critics.values(), reference) if role is not None}
    if engines.name in start.sharing:
        engines.begin("start")
    ready = ready_together([*(role.actors for role in trainers.values()), *rewards.groups.values(), engines])

    turns = _turns(config, trainers, engines, rewards, start.asleep)
    sync = _sync(config, cluster, policy, engines, ready[engines.name], len(tokenizer), turns)
    renew = partial(_renew, engines, sync, turns)
    with (
        _rollout(config, Encoder(tokenizer)) as rollout,
        open_pool(engines, rollout, deterministic=config.rollout.deterministic, renew=renew) as pool,
    ):
        memory = None
        if config.algorithm.max_staleness and config.rollout.replay is None:
            memory = RememberedSource(pool, only_whole=config.rollout.deterministic)
        yield PPORoles(
            policy=policy,
            critics=critics,
            reference=reference,
            rewards=rewards,
            engines=engines,
            pool=pool,
            source=_source(config, memory or pool),
            sync=sync,
            renew=renew,
            tokenizer=tokenizer,
            turns=turns,
            memory=memory,
            adapter_off=config.adapter_off_is_reference,
        )


@contextmanager
def _rollout(config: PPOConfig, encoder: Encoder) -> Iterator[Rollout]:
    """Open the way from a prompt to samples: an answer, or an episode with an environment."""
    rollout, sampling = config.rollout, Sampling.from_config(config.rollout)
    if rollout.environment is None:
        yield SingleTurn(encoder, sampling)
        return
    with ForkedEnvironments(rollout.environment) as environments:
        yield Episodes(environments, encoder, sampling, turn_limits(config), together=rollout.deterministic)


def turn_limits(config: PPOConfig) -> TurnLimits:
    """Return where the episodes of a run end at the latest."""
    rollout = config.rollout
    return TurnLimits(rollout.max_turns, config.longest_sample() - rollout.max_new_tokens, rollout.max_turn_tokens)


class _Start:
    """Places the roles of a run; each method makes one.

    Where devices are shared, a role loads alone and leaves them to the next; elsewhere all load at once.
    """

    def __init__(self, config: PPOConfig, cluster: Cluster) -> None:
        self.asleep: set[str] = set()
        """Roles that have left their devices."""
        self._config, self._cluster = config, cluster
        self.sharing = turn_takers(config)
        """Roles that share devices and take turns on them."""

    def policy(self) -> TrainerGroup:
        """Begin the model that learns, but not while the critics warm up."""
        config = self._config
        steps = (config.steps - config.algorithm.critic_warmup_steps) * config.epochs * config.minibatches
        return self._trainer("policy", config.model, config.policy, total_steps=max(steps, 1))

    def critics(self) -> dict[str, TrainerGroup]:
        """Start the critics: `critic` and, where costs are constrained, `cost_critic`."""
        config = self._config
        total_steps = config.steps * config.epochs * config.minibatches
        return {
            critic_role(key): self._trainer(
                critic_role(key),
                critic_model(config, key),
                critic,
                total_steps=total_steps,
                units=critic_units(config, key),
            )
            for key, critic in config.critics.items()
        }

    def reference(self) -> TrainerGroup:
        """Begin the model that the policy began from."""
        frozen = TrainerConfig(**self._config.reference.model_dump())
        return self._trainer("reference", self._config.model, frozen, total_steps=1, trainable=False)

    def rewards(self) -> RewardSources:
        """Begin all reward sources."""
        config = self._config
        sources = RewardSources(
            self._cluster,
            config.rewards,
            config.tokens_per_microbatch,
            max_restarts=RESTARTS,
            cost_weight=cost_weight(config.algorithm),
        )
        self._settle("rewards", sources)
        return sources

    def engines(self) -> ActorGroup:
        """Begin the rollout's engines; those that share devices load once the others have left them."""
        config = self._config
        engines = place_engines(
            self._cluster,
            config.model,
            config.rollout,
            transport=lambda: _transport(config, self._cluster),
            seed=config.seed,
            max_tokens=config.longest_sample(),
            lora=config.policy.lora if config.rollout.adapter == "reload" else None,
            neighbours=planned_layout(config).neighbours("rollout"),
        )
        if engines.name not in self.sharing:
            engines.begin("start")
        return engines

    def _trainer(
        self,
        name: str,
        model: ModelConfig,
        trainer: TrainerConfig,
        *,
        total_steps: int,
        trainable: bool = True,
        units: ScoreStatistics | None = None,
    ) -> TrainerGroup:
        config = self._config
        role = TrainerGroup(
            self._cluster,
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
            demand=thread_demand(name, config),
            units=units,
        )
        self._settle(name, role)
        return role

    def _settle(self, name: str, role: TrainerGroup | RewardSources) -> None:
        if name in self.sharing:
            role.ready()
            role.clear()
            self.asleep.add(name)


def _renew(engines: ActorGroup, sync: PolicySync, turns: DeviceTurns, number: int) -> RemoteEngine:
    """Start an engine again, with the weights of the others.

    Raises:
        RoleError: it does not start, or got no weights, also not at a second start. Or the policy died.
    """
    tried = False
    turns.give(ROLLOUT)  # also where it is missed in a sync: it does not start beside the policy
    while True:
        engine = restart_engine(engines, number)
        if sync.version < 0:
            return engine
        try:
            turns.give_for_sync()
            sync.catch_up(number)
            return engine
        except (RoleFailed, DeadlineExceeded) as error:
            if isinstance(error, RoleDied) and error.role != engines.name:
                raise
            engines.kill_one(number)  # it would not answer when the others wake
            turns.give(ROLLOUT)
            # A policy that lives may have raised, or waited, because this engine died.
            if tried or isinstance(error.__cause__, ManifestMismatch):
                raise RoleFailed(str(error.args[0]), engines.name, number, "restart") from error
            logger.warning("%s; starting rollout engine %d once more", error.args[0], number)
            tried = True


def _turns(
    config: PPOConfig,
    trainers: Mapping[str, TrainerGroup],
    engines: ActorGroup,
    rewards: RewardSources,
    asleep: set[str],
) -> DeviceTurns:
    """Make the turns of roles that share devices, by the names that `uses` has for them; all reward sources are one."""
    shares = engines.cluster.layout.shares(lambda role: role.partition(".")[0])
    shared_engines = SharedEngines(engines, get_all_weights=config.rollout.adapter == "merged")
    roles: dict[str, Sleeper] = {**trainers, ROLLOUT: shared_engines, REWARDS: rewards}
    return DeviceTurns({name: role for name, role in roles.items() if name in shares}, shares, asleep)


def _sync(
    config: PPOConfig,
    cluster: Cluster,
    policy: TrainerGroup,
    engines: ActorGroup,
    workers: list[int],
    tokenizer_size: int,
    turns: DeviceTurns,
) -> PolicySync:
    """Choose how weights travel: all, with the adapter merged if there is one; or the adapter alone."""
    # A tokenizer may have more ids than the embedding has rows.
    vocabulary = min(tokenizer_size, policy_config(config.model).get_text_config().vocab_size)
    verified: dict[str, Any] = {
        "dtype": config.model.dtype,
        "tolerance": config.rollout.sync_tolerance,
        "probes": partial(probe_sequences, vocabulary, max_tokens=config.longest_sample() - 1),
        "hand_over": None if turns.engines is None else partial(turns.give, ROLLOUT),
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


def _transport(config: PPOConfig, cluster: Cluster) -> Transport:
    return choose_transport(config.rollout, cluster.layout.overlap("rollout", "policy"))


def _source(config: PPOConfig, pool: GroupSource) -> GroupSource:
    if config.rollout.replay is not None:
        return Replay(Path(config.rollout.replay))
    if config.rollout.record is not None:
        return Recorder(pool, Path(config.rollout.record))
    return pool

"""Rollout engines and the pool in front of them, started from a config by every job that generates."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.cluster.errors import RoleDied, RoleError
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.models.facts import weight_bytes
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.rollout.engine_arguments import choose_transport
from rlhf_ray.rollout.interfaces import EngineClient, Rollout
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.runs.recovery import RESTARTS
from rlhf_ray.transfer.group import Transport

logger = logging.getLogger(__name__)

WEIGHTS, CACHE = "weights", "kv_cache"
"""vLLM's names for what an engine wakes up one after the other."""

KEEPS_WEIGHTS, KEEPS_NOTHING = 1, 2
"""vLLM's levels of sleep: weights wait in the machine's memory, or nowhere."""


class SharedEngines:
    """Engines on devices that they share with others: what of them is awake, and what they keep while they sleep.

    vLLM drops the cache whenever it sleeps; requests in flight stay and are computed anew from their tokens.
    """

    def __init__(self, engines: ActorGroup, *, get_all_weights: bool) -> None:
        """Take engines that are awake.

        Args:
            engines: started ones.
            get_all_weights: whether a sync gives them all their weights, and not an adapter alone.
        """
        self._engines = engines
        self._get_all_weights = get_all_weights
        self._awake: tuple[str, ...] = (WEIGHTS, CACHE)
        self.weights_follow = False
        """Whether a sync comes before they answer again."""

    def wake(self) -> None:
        """Take all that is missing: the weights that were kept, and an empty cache."""
        self._wake(WEIGHTS, CACHE)

    def wake_weights(self) -> None:
        """Take the weights, or room for them."""
        self._wake(WEIGHTS)

    def sleep(self) -> None:
        """Free the devices; weights are kept unless new ones follow."""
        level = KEEPS_NOTHING if self.weights_follow and self._get_all_weights else KEEPS_WEIGHTS
        self._engines.turn("sleep", level)
        self._awake = ()

    def sleep_but_weights(self) -> None:
        """Free the devices where the cache is awake; it cannot go alone."""
        if CACHE in self._awake:
            self.sleep()

    def _wake(self, *parts: str) -> None:
        missing = [part for part in parts if part not in self._awake]
        if missing:
            self._engines.turn("wake", missing)
            self._awake = (*self._awake, *missing)


def place_engines(
    cluster: Cluster,
    model: ModelConfig,
    rollout: RolloutConfig,
    *,
    transport: Callable[[], Transport],
    seed: int,
    max_tokens: int,
    lora: LoraConfig | None = None,
    name: str = "rollout",
    neighbours: int = 0,
) -> ActorGroup:
    """Place actors of all engines, which load their model once `begin("start")` tells them to.

    Args:
        cluster: where.
        model: what they load.
        rollout: how many, and on which devices.
        transport: says how new weights reach them; asked once they are placed.
        seed: of vLLM's own random state.
        max_tokens: longest prompt and response together.
        lora: of adapters that they will load; None for none.
        name: of the role; unique in the cluster.
        neighbours: processes of other roles on their GPUs, which take turns with them.

    Raises:
        DoesNotFit: they have no room in their group.
    """

    def arguments(rank: int) -> dict[str, Any]:
        return {
            "model": model,
            "rollout": rollout,
            "transport": transport(),
            "index": rank,
            "seed": seed,
            "max_tokens": max_tokens,
            "lora": lora,
            "load_seconds": cluster.deadlines.loading(size),
            "neighbours": neighbours,
        }

    size = weight_bytes(model.path, model.trust_remote_code)
    return ActorGroup(
        cluster, Engine, rollout, name, arguments, RESTARTS, end="shutdown", weight_bytes=size, load_in_turn=True
    )


def fixed_pool(
    cluster: Cluster, model: ModelConfig, rollout: RolloutConfig, turn: Rollout, *, seed: int, max_tokens: int
) -> RolloutPool:
    """Start engines whose weights never change, and open the pool over them.

    Raises:
        DoesNotFit: they have no room in their group. RoleError: one did not start.
    """
    engines = place_engines(
        cluster,
        model,
        rollout,
        transport=lambda: choose_transport(rollout, overlap="none"),
        seed=seed,
        max_tokens=max_tokens,
    )
    engines.begin("start")
    engines.ready()
    return open_pool(engines, turn, deterministic=rollout.deterministic)


def open_pool(
    engines: ActorGroup,
    rollout: Rollout,
    *,
    deterministic: bool,
    renew: Callable[[int], EngineClient] | None = None,
) -> RolloutPool:
    """Open the pool over started engines; a lost engine starts again.

    Args:
        engines: of `place_engines`.
        rollout: from a prompt to samples.
        deterministic: whether equal seeds give equal samples.
        renew: starts an engine again, with the weights of the others; None where they never change.
    """

    def restore(number: int, error: Exception) -> EngineClient | RoleError:
        logger.warning("%s; starting it again", error)
        return engine_or_reason(renew or partial(restart_engine, engines), engines, number)

    return RolloutPool(
        [RemoteEngine(handle, number) for number, handle in enumerate(engines.handles)],
        rollout,
        deadline_seconds=engines.cluster.deadlines.call_seconds,
        deterministic=deterministic,
        restore=restore,
    )


def engine_or_reason(
    start: Callable[[int], EngineClient], engines: ActorGroup, number: int
) -> EngineClient | RoleError:
    """Await an engine that starts again; if it stays out, end its process, so that its devices become free.

    Args:
        start: starts engine `number`, and may give it weights.
        engines: all of them.
        number: the engine.

    Raises:
        RoleError: of another role, which makes room for it or gives it weights.
    """
    try:
        engine = start(number)
        logger.warning("rollout engine %d runs again", number)
        return engine
    except RoleError as failure:
        if failure.role != engines.name:
            raise
        logger.warning("rollout engine %d stays out: %s", number, failure)
        engines.kill_one(number)
        return failure


def restart_engine(engines: ActorGroup, number: int) -> RemoteEngine:
    """Start a new process for an engine, with the job's first weights; one that dies before is replaced again.

    Raises:
        RoleError: it was restarted too often, or does not start.
    """
    while True:
        engines.restart(number)
        try:
            engines.call_one(number, "start", phase="restart", seconds=engines.load_seconds)
            return RemoteEngine(engines.handles[number], number)
        except RoleDied as death:
            logger.warning("%s; starting it again", death)

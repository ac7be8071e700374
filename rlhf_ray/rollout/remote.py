"""The pool's side of an engine in a Ray actor: one streamed call for many requests, failures sorted."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from rlhf_ray.cluster.errors import RoleDied, RoleFailed
from rlhf_ray.cluster.outcome import failure_of
from rlhf_ray.rollout.engine import EngineDirty
from rlhf_ray.rollout.requests import GenerationRequest, GenerationResult


class RemoteEngine:
    """An `EngineClient` in front of an actor that has the methods of `Engine`, `generate` as a stream."""

    def __init__(self, actor: ActorHandle, rank: int) -> None:
        self._actor = actor
        self._rank = rank

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"rollout engine {self._rank}"

    async def generate(
        self, requests: Sequence[GenerationRequest], *, queued: bool
    ) -> AsyncGenerator[Sequence[GenerationResult], None]:
        """Generate by one call whatever the number of requests; see `EngineClient`."""
        stream: Any = self._actor.generate.options(num_returns="streaming").remote(list(requests), queued=queued)
        ended = False
        try:
            async for bunch in stream:
                yield await bunch
            ended = True
        except RayError as error:
            ended = True
            raise self._sorted(error, "generate") from error
        finally:
            if not ended:
                # Nobody listens any more: the actor's generator is closed, and aborts what still runs.
                ray.cancel(stream)

    def _sorted(self, error: RayError, phase: str) -> RoleFailed:
        failure = failure_of(error, "rollout", self._rank, phase)
        cause = failure.__cause__
        if isinstance(cause, EngineDirty):
            return RoleDied(str(failure), "rollout", self._rank, phase)
        # By name, because importing vLLM for its class would hold the driver up for seconds.
        if type(cause).__name__ == "EngineDeadError":
            message = f"{self.name}: vLLM's processes ended in {phase}; the log of the engine's actor says why"
            return RoleDied(message, "rollout", self._rank, phase)
        return failure

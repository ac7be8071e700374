"""The seam between an episode and the environment that answers the policy, wherever that lives."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.records import Message, PromptRecord

EnvironmentFailureKind = Literal["raised", "hung", "died", "malformed answer"]


class EnvironmentFailed(RlhfError):
    """An environment did not do its part; its episode has no reward, and says nothing of the policy."""

    def __init__(self, kind: EnvironmentFailureKind, message: str) -> None:
        super().__init__(message)
        self.kind: EnvironmentFailureKind = kind


@dataclass(frozen=True, slots=True)
class Answer:
    """A checked answer of an environment to a turn."""

    messages: Sequence[Message]
    """What the policy reads next."""
    reward: float
    """Of the turn; nobody looks at it where the environment gives no rewards."""
    ended: bool


class Environment(Protocol):
    """One episode's environment. All methods raise EnvironmentFailed within their deadline."""

    async def reset(self, prompt: PromptRecord, seed: int) -> Sequence[Message]:
        """Begin; return what the policy reads behind the prompt before its first turn, mostly nothing."""
        ...

    async def step(self, turn: Message) -> Answer:
        """Take a turn of the policy."""
        ...


class Environments(Protocol):
    """The source of episodes' environments."""

    @property
    def gives_rewards(self) -> bool:
        """Whether an episode is rewarded by its environment; one that ends before the first reward has then 0."""
        ...

    @property
    def tools(self) -> Sequence[dict[str, Any]]:
        """JSON schemas of what the policy may call; none where turns are texts alone."""
        ...

    def open(self) -> AbstractAsyncContextManager[Environment]:
        """Open one that nobody else has; it ends with the block. Raises EnvironmentFailed."""
        ...

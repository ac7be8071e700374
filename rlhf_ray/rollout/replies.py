"""What an environment says to a turn of the policy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Reply:
    """An environment's answer to one turn of the policy."""

    messages: str | Sequence[Mapping[str, Any]] = ()
    """What the policy reads next, as messages with `role` and `content`; a text is one turn of the user."""
    reward: float = 0.0
    """Of this turn; an episode's reward is the sum over its turns."""
    ended: bool = False
    """Whether the episode ends here; the messages are then read by nobody but people."""

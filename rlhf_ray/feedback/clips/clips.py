"""Clips of behaviour, and choices between two of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self, get_args

import numpy as np
from jaxtyping import Float32, Int64

Choice = Literal["left", "right", "equal", "cannot_tell"]
"""Which clip shows what is wanted: the left one, the right one, both as much; or that nobody can tell."""

CHOICES: tuple[Choice, ...] = get_args(Choice)

LEFT_SHARE: Mapping[Choice, float] = {"left": 1.0, "right": 0.0, "equal": 0.5}
"""Share of the judgement that the left clip gets; what nobody can tell teaches nothing (Christiano et al. 2017)."""


@dataclass(frozen=True)
class Clips:
    """Clips of equal length, one beside the other."""

    observations: Float32[np.ndarray, "clips frames features"]
    """What the agent saw before each step."""
    actions: Float32[np.ndarray, "clips frames actions"]
    """What it did."""
    true_returns: Float32[np.ndarray, " clips"]
    """Sum of the true reward, which only an oracle may look at."""

    def __len__(self) -> int:
        return len(self.true_returns)

    @property
    def inputs(self) -> Float32[np.ndarray, "clips frames inputs"]:
        """Return what a reward predictor sees of each step: observation and action, side by side."""
        return np.concatenate([self.observations, self.actions], axis=2)

    def take(self, places: Sequence[int] | Int64[np.ndarray, " chosen"]) -> Self:
        """Return the clips at some places."""
        chosen = np.asarray(places, dtype=np.int64)
        return type(self)(self.observations[chosen], self.actions[chosen], self.true_returns[chosen])

    @classmethod
    def joined(cls, parts: Sequence["Clips"]) -> Self:
        """Join all clips of some, in their order; at least one part, which may be empty."""
        return cls(
            np.concatenate([part.observations for part in parts]),
            np.concatenate([part.actions for part in parts]),
            np.concatenate([part.true_returns for part in parts]),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the clips by name, for a checkpoint."""
        return {"observations": self.observations, "actions": self.actions, "true_returns": self.true_returns}


@dataclass(frozen=True)
class Comparisons:
    """Pairs of clips that were judged, those that nobody could decide left out."""

    numbers: Int64[np.ndarray, " pairs"]
    """By which a pair is known in its run."""
    left: Clips
    right: Clips
    left_share: Float32[np.ndarray, " pairs"]
    """1 where the left clip was chosen, 0 the right one, 0.5 where both are equally good."""

    def __len__(self) -> int:
        return len(self.numbers)

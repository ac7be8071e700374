"""PPO-Lagrangian: reward raised while the mean cost of an episode stays under a limit (Dai et al. 2024, safe-rlhf)."""

import math
from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from rlhf_ray.algorithms.shapes import check_shapes


@check_shapes
def combined_advantages(
    reward_advantages: Float[Tensor, " tokens"], cost_advantages: Float[Tensor, " tokens"], multiplier: float
) -> Float[Tensor, " tokens"]:
    """Return (A_reward - lambda A_cost) / (1 + lambda); with lambda 0 it is A_reward, bit for bit."""
    if multiplier == 0:
        return reward_advantages
    return (reward_advantages - multiplier * cost_advantages) / (1 + multiplier)


MULTIPLIER_RANGE = 2.0**-24, 2.0**24
"""Where a learned lambda stays. Beyond, float32 no longer sees the reward, or the cost, beside the other, until the
exponential overflows or becomes a 0 that never moves again. One that begins outside goes no further out."""


@dataclass(frozen=True)
class LagrangeMultiplier:
    """Lambda, learned by gradient ascent on log lambda.

    log lambda grows by learning_rate x lambda x (mean episode cost - limit), up to log maximum, and within 2^-24 ...
    2^24. `value` and `steps` are all its state. A lambda of 0 stays 0; a learning rate of 0 fixes any.
    """

    value: float
    learning_rate: float
    cost_limit: float
    maximum: float | None = None
    delay: int = 0
    """Updates that pass before lambda first moves."""
    steps: int = 0
    """Updates seen."""

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"lambda must not be negative: {self.value}")

    def update(self, mean_cost: float) -> "LagrangeMultiplier":
        """Return the multiplier after a batch whose episodes cost `mean_cost` on average; before the policy's step."""
        value = self.value
        if self.steps >= self.delay and value > 0 and self.learning_rate > 0:
            lowest, highest = min(MULTIPLIER_RANGE[0], value), max(MULTIPLIER_RANGE[1], value)
            if self.maximum is not None:
                highest = min(highest, self.maximum)
            moved = math.log(value) + self.learning_rate * value * (mean_cost - self.cost_limit)
            value = math.exp(min(max(moved, math.log(lowest)), math.log(highest)))
        return replace(self, value=value, steps=self.steps + 1)

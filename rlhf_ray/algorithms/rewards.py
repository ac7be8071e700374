"""From scores of responses to rewards of tokens."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.segments import last_of_rows, row_index
from rlhf_ray.algorithms.shapes import check_shapes


def clip_scores(scores: Float[Tensor, "*n"], limit: float) -> Float[Tensor, "*n"]:
    """Clip to -limit ... limit."""
    return scores.clamp(-limit, limit)


@check_shapes
def penalise_missing_eos(
    scores: Float[Tensor, " rows"], ended: Bool[Tensor, " rows"], penalty: float
) -> Float[Tensor, " rows"]:
    """Take the penalty from the score of each response that did not end by itself."""
    return torch.where(ended, scores, scores - penalty)


@check_shapes
def token_rewards(
    scores: Float[Tensor, " rows"],
    kl: Float[Tensor, " tokens"],
    written: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    kl_coefficient: float,
) -> Float[Tensor, " tokens"]:
    """Reward each token with minus coefficient times KL, and the row's last written token with its score too.

    0 where not written, whatever stands in `kl` there. The score of a row without written tokens goes nowhere
    (Ziegler et al. 2019; Ouyang et al. 2022).
    """
    rewards = torch.where(written, -kl_coefficient * kl, 0.0) if kl_coefficient else torch.zeros_like(kl)
    last = last_of_rows(written, row_index(offsets), len(scores))
    some = last >= 0
    rewards[last[some]] += scores[some].to(rewards.dtype)
    return rewards


def overlong_penalty(
    lengths: Float[Tensor, " rows"], longest: int, buffer: int, factor: float = 1.0, capped: bool = True
) -> Float[Tensor, " rows"]:
    """Return the penalty that is added to scores of long responses: DAPO's soft overlong punishment
    (Yu et al. 2025).

    It falls from 0 at length `longest - buffer` to -factor at `longest`.

    Args:
        lengths: response tokens, EOS included.
        longest: tokens allowed.
        buffer: last tokens, over which the penalty grows.
        factor: the full penalty.
        capped: beyond `longest` the penalty stays (OpenRLHF); False lets it grow on (verl, NeMo-RL).
    """
    exceeding = lengths - (longest - buffer)
    if capped:
        exceeding = exceeding.clamp(max=buffer)
    return (-exceeding / buffer * factor).clamp(max=0)


SMALLEST_DEVIATION = 1e-20
"""Less is rounding; a single-precision number divided by it may be infinite."""


@dataclass(frozen=True)
class RunningMoments:
    """Mean and variance of all rewards seen, batch by batch (Welford 1962; Chan et al. 1979).

    Its three numbers are all its state. Until two values have been seen it changes nothing.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared differences from the mean."""

    def update(self, values: Float[Tensor, " rows"]) -> "RunningMoments":
        """Return the moments after these values too; values that are not finite are left out."""
        chosen = values[values.isfinite()].double()
        added = chosen.numel()
        if not added:
            return self
        mean = float(chosen.mean())
        squares = float((chosen - mean).square().sum())
        count = self.count + added
        shift = mean - self.mean
        return RunningMoments(
            count=count,
            mean=self.mean + shift * added / count,
            squares=self.squares + squares + shift * shift * self.count * added / count,
        )

    @property
    def deviation(self) -> float:
        """Standard deviation with Bessel's correction; 1 until it is known or if all values were as good as equal."""
        found = math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0
        return found if found > SMALLEST_DEVIATION else 1.0

    def normalise(self, values: Float[Tensor, " rows"], shift_mean: bool = True) -> Float[Tensor, " rows"]:
        """Return (value - mean) / deviation, or value / deviation, which keeps the sign of rewards."""
        if self.count < 2:
            return values
        return (values - (self.mean if shift_mean else 0.0)) / self.deviation

"""Rewards of single steps from choices between two clips of behaviour (Christiano et al. 2017, sections 2.2 and A)."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_ray.algorithms.losses import Metrics, weighted_metrics, weighted_sum, where_weighted
from rlhf_ray.algorithms.shapes import check_shapes


def log_preferences(
    difference: Float[Tensor, " pairs"], error_floor: float
) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Return the log-probability that the left clip is chosen, and that of the right one.

    P[left] = (1 - e) sigmoid(difference) + e / 2: with probability e the judge presses a button at random, however
    clear the case is. Its logarithm never falls below log(e / 2), so that one slip cannot pull a predictor anywhere.

    Args:
        difference: sum of the rewards of the left clip less that of the right one.
        error_floor: e, from 0 to below 1.
    """
    rest = math.log1p(-error_floor)
    floor = difference.new_tensor(math.log(error_floor) - math.log(2) if error_floor > 0 else -math.inf)
    left = torch.logaddexp(rest + F.logsigmoid(difference), floor)
    right = torch.logaddexp(rest + F.logsigmoid(-difference), floor)
    return left, right


@dataclass(frozen=True)
class ClipPreferenceLoss:
    """Cross-entropy of the predicted choice between two clips, by Bradley-Terry on sums of rewards (equation 1).

    Columns, one row for each comparison: `weight`; `left_share`, 1 where the left clip was chosen, 0 the right one,
    0.5 where both are equally good. Comparisons that nobody could decide are left out before.
    """

    error_floor: float = 0.1
    """Share of choices made at random."""
    needs_entropy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.error_floor < 1:
            raise ValueError(f"error_floor must be at least 0 and below 1, not {self.error_floor}")

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `left` and `right` [rows], the sums of predicted rewards of the clips."""
        weight = columns["weight"]
        share = where_weighted(weight, columns["left_share"])
        difference = where_weighted(weight, outputs["left"]) - where_weighted(weight, outputs["right"])
        left, right = log_preferences(difference, self.error_floor)
        losses = -(share * left + (1 - share) * right)
        loss = weighted_sum(weight, losses)
        # A clip that is chosen half the time is half right whatever was predicted.
        right_side = torch.where(difference > 0, share, torch.where(difference < 0, 1 - share, 0.5))
        return loss, {"loss": loss.detach(), **weighted_metrics(weight, {"accuracy": right_side})}


def choice_variance(differences: Float[Tensor, "members pairs"], error_floor: float) -> Float[Tensor, " pairs"]:
    """Return how much the members disagree on which clip is chosen: what to ask people next.
    The variance, over the members of an ensemble, of the probability that the left clip is chosen.
    """
    left, _ = log_preferences(differences, error_floor)
    return left.exp().var(0, correction=0)


@check_shapes
def adapted_l2(
    coefficient: Float[Tensor, " members"],
    training_loss: Float[Tensor, " members"],
    validation_loss: Float[Tensor, " members"],
    low: float = 1.1,
    high: float = 1.5,
    factor: float = 1.2,
) -> Float[Tensor, " members"]:
    """Adapt L2 coefficients: validation loss stays between `low` and `high` times the training loss (section 2.2.3).

    Above, the member learns its comparisons by heart, and the coefficient grows by `factor`; below, it could learn
    more, and the coefficient shrinks.
    """
    ratio = validation_loss / training_loss
    change = torch.where(ratio > high, factor, torch.where(ratio < low, 1 / factor, 1.0))
    return coefficient * change


def comparisons_due(steps: int, total_steps: int, budget: int, first_share: float, halving_steps: float) -> int:
    """Return how many comparisons a run may have asked for after so many steps of the agent.

    A first share is asked before the policy learns; then the rate falls as halving_steps / (steps + halving_steps)
    (section A.1), here integrated and scaled so that the budget is spent after `total_steps`.

    Args:
        steps: that the agent has made.
        total_steps: after which nothing is asked any more.
        budget: comparisons of the whole run.
        first_share: share of the budget that is asked before the first update.
        halving_steps: after which the rate is half of what it was.
    """
    first = round(budget * first_share)
    share = math.log1p(min(steps, total_steps) / halving_steps) / math.log1p(total_steps / halving_steps)
    return first + math.floor((budget - first) * share + 1e-9)

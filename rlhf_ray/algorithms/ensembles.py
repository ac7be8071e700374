"""Several reward models as one: their mean, and how far they disagree (Coste et al. 2024, Eisenstein et al. 2023)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.ranking import ordered_pair_rows
from rlhf_ray.algorithms.shapes import check_shapes


@check_shapes
def standardised(
    scores: Float[Tensor, "members rows"], means: Float[Tensor, " members"], stds: Float[Tensor, " members"]
) -> Float[Tensor, "members rows"]:
    """Standardise each member's scores by its own training texts: zero and unit of raw scores mean nothing."""
    return (scores - means[:, None]) / stds[:, None].clamp(min=1e-8)


def pessimistic(scores: Float[Tensor, "members rows"], penalty: float) -> Float[Tensor, " rows"]:
    """Return the mean over members less `penalty` times their (biased) standard deviation."""
    return scores.mean(0) - penalty * scores.std(0, correction=0)


@dataclass(frozen=True)
class Disagreement:
    """Disagreement of an ensemble's members on rankings."""

    std: Float[Tensor, ""]
    """Standard deviation over members of a text's score, as a mean over texts."""
    disputed_pairs: Float[Tensor, ""]
    """Share of ordered pairs that some member puts right and another does not."""


@check_shapes
def disagreement(
    scores: Float[Tensor, "members rows"], groups: Int64[Tensor, " rows"], ranks: Int64[Tensor, " rows"]
) -> Disagreement:
    """Compare members on rankings; without any pair the share is NaN."""
    _, index = torch.unique(groups, return_inverse=True)
    better, worse = ordered_pair_rows(index, ranks)
    right = scores[:, better] > scores[:, worse]
    disputed = right.any(0) & ~right.all(0)
    return Disagreement(scores.std(0, correction=0).mean(), disputed.to(scores.dtype).mean())

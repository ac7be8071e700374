"""Advantages from several responses to one prompt, without a critic: one number for each response.

A group of one has nothing to compare with, and a group of equal scores nothing to learn: both give exactly 0.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from rlhf_ray.algorithms.segments import row_sums
from rlhf_ray.algorithms.shapes import check_shapes
from rlhf_ray.algorithms.statistics import masked_mean, masked_variance


@dataclass(frozen=True)
class _Groups:
    """Statistics of each response's group, in float64."""

    scores: Float[Tensor, " rows"]
    size: Float[Tensor, " rows"]
    mean: Float[Tensor, " rows"]
    varied: Bool[Tensor, " rows"]
    """Whether the group's scores differ."""
    index: Int64[Tensor, " rows"]
    count: int

    @classmethod
    def of(cls, scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"]) -> "_Groups":
        _, index = torch.unique(groups, return_inverse=True)
        count = int(index.max()) + 1 if len(index) else 0
        scores = scores.double()
        size = row_sums(torch.ones_like(scores), index, count)
        mean = row_sums(scores, index, count) / size
        highest = torch.full_like(mean, -torch.inf).scatter_reduce(0, index, scores, "amax")
        lowest = torch.full_like(mean, torch.inf).scatter_reduce(0, index, scores, "amin")
        return cls(scores, size[index], mean[index], (highest > lowest)[index], index, count)

    @property
    def centred(self) -> Float[Tensor, " rows"]:
        return torch.where(self.varied, self.scores - self.mean, 0.0)


@check_shapes
def grpo(
    scores: Float[Tensor, " rows"],
    groups: Shaped[Tensor, " rows"],
    scale: Literal["group", "batch"] = "group",
    epsilon: float = 1e-6,
) -> Float[Tensor, " rows"]:
    """(score - mean of the group) / (standard deviation + epsilon) (Shao et al. 2024).

    Args:
        scores: of each response.
        groups: id of each response's prompt.
        scale: deviation of the group, or of all scores of the batch, both with Bessel's correction.
        epsilon: verl 1e-6, TRL 1e-4, OpenRLHF 1e-9.
    """
    group = _Groups.of(scores, groups)
    if scale == "group":
        squares = row_sums(group.centred.square(), group.index, group.count)[group.index]
        deviation = (squares / (group.size - 1).clamp(min=1)).sqrt()
    else:
        deviation = group.scores.std() if len(scores) > 1 else torch.ones_like(group.scores)
    return (group.centred / (deviation + epsilon)).to(scores.dtype)


@check_shapes
def dr_grpo(scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Score - mean of the group: GRPO without its division, which favours groups of small spread (Liu et al. 2025)."""
    return _Groups.of(scores, groups).centred.to(scores.dtype)


@check_shapes
def rloo(scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Score - mean of the group's other scores (Kool et al. 2019, Ahmadian et al. 2024)."""
    group = _Groups.of(scores, groups)
    return (group.centred * group.size / (group.size - 1).clamp(min=1)).to(scores.dtype)


@check_shapes
def opo(
    scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"], lengths: Shaped[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Score - mean of the group weighted by length, the baseline of least variance (Hao et al. 2025).

    Args:
        scores: of each response.
        groups: id of each response's prompt.
        lengths: written tokens of each response.
    """
    group = _Groups.of(scores, groups)
    weight = lengths.double()
    total = row_sums(weight, group.index, group.count).clamp(min=1)
    baseline = row_sums(weight * group.scores, group.index, group.count) / total
    return torch.where(group.varied, group.scores - baseline[group.index], 0.0).to(scores.dtype)


@check_shapes
def remax(scores: Float[Tensor, " rows"], greedy_scores: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Score - score of the greedy response to the same prompt (Li et al. 2023)."""
    return scores - greedy_scores


def standardise(values: Float[Tensor, " rows"], epsilon: float = 1e-4) -> Float[Tensor, " rows"]:
    """(value - mean) / (standard deviation + epsilon) over the batch, with Bessel's correction (TRL's RLOO)."""
    everywhere = torch.ones_like(values, dtype=torch.bool)
    deviation = masked_variance(values, everywhere).sqrt()
    return ((values.double() - masked_mean(values, everywhere)) / (deviation + epsilon)).to(values.dtype)


@check_shapes
def informative_groups(scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"]) -> Bool[Tensor, " rows"]:
    """Responses whose group's scores differ: what DAPO's filter keeps (Yu et al. 2025)."""
    return _Groups.of(scores, groups).varied

"""Reward models from rankings: a pair is a ranking of two, equal ranks are ties and make no pair."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.losses import Metrics, weighted_metrics, weighted_sum, where_weighted
from rlhf_ray.algorithms.segments import row_sums
from rlhf_ray.algorithms.shapes import check_shapes


@check_shapes
def ordered_pairs(groups: Int64[Tensor, " rows"], ranks: Int64[Tensor, " rows"]) -> Bool[Tensor, "rows rows"]:
    """Tell which row (first index) stands above which (second index) in the same ranking."""
    return (groups[:, None] == groups[None]) & (ranks[:, None] < ranks[None])


@check_shapes
def ranking_weights(
    groups: Int64[Tensor, " rows"],
    ranks: Int64[Tensor, " rows"],
    aggregation: Literal["pairs", "lists"] = "pairs",
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " rows"]:
    """Weigh the pairs of each row's ranking, over all rankings of one optimizer step.

    - `pairs`: one mean over all ordered pairs of the step, so long lists count more (Stiennon et al. 2020).
    - `lists`: the mean over lists of each list's own mean (Ouyang et al. 2022). Lists of nothing but ties do not count.

    Args:
        groups: ranking of each row.
        ranks: 0 is best; equal ranks are ties.
        aggregation: one of the above.
        dtype: of the result.

    Raises:
        ValueError: the aggregation is unknown.
    """
    _, index = torch.unique(groups, return_inverse=True)
    pairs = _pairs_of_groups(index, ranks)
    if aggregation == "pairs":
        return (pairs > 0).to(dtype)[index] / pairs.sum().clamp(min=1)
    if aggregation == "lists":
        weights = (pairs > 0).to(dtype) / (pairs.clamp(min=1) * (pairs > 0).sum().clamp(min=1))
        return weights[index]
    raise ValueError(f"no aggregation of rankings is named {aggregation!r}; choose pairs or lists")


def _pairs_of_groups(index: Int64[Tensor, " rows"], ranks: Int64[Tensor, " rows"]) -> Int64[Tensor, " groups"]:
    """Count the ordered pairs of each group: all its pairs less those of equal rank."""
    count = int(index.max()) + 1 if len(index) else 0
    sizes = row_sums(torch.ones_like(index), index, count)
    tied, tie_sizes = torch.unique(torch.stack([index, ranks.to(index.dtype)]), dim=1, return_counts=True)
    ties = row_sums(tie_sizes * (tie_sizes - 1) // 2, tied[0], count)
    return sizes * (sizes - 1) // 2 - ties


@dataclass(frozen=True)
class RankingLoss:
    """Bradley-Terry loss over all ordered pairs of each ranking (Stiennon et al. 2020, Ouyang et al. 2022).

    Row columns: `weight` as `ranking_weights` makes it, `group` (id of the ranking), `rank` (0 is best); optionally
    `margin`, a grade of each row: a pair must then differ by the difference of its grades (Touvron et al. 2023). All
    rows of a ranking must be in one micro-batch.
    """

    kind: Literal["log_sigmoid", "sigmoid"] = "log_sigmoid"
    """`sigmoid` is minus the sigmoid of the difference; it starts at -0.5 and forgives hopeless pairs."""
    centering_coefficient: float = 0.0
    """Weight of a term that keeps scores near 0."""
    centering: Literal["sum", "squares"] = "sum"
    """(better + worse)^2 (Eisenstein et al. 2023, TRL), or the mean of the two squares (safe-rlhf, align-anything)."""
    needs_entropy: ClassVar[bool] = False

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `scores` [rows]."""
        weight = columns["weight"]
        scores = where_weighted(weight, outputs["scores"])
        pairs = ordered_pairs(columns["group"], columns["rank"])
        pair_weight = torch.where(pairs, weight[:, None], 0.0)
        difference = scores[:, None] - scores[None]
        target = difference
        if "margin" in columns:
            margin = where_weighted(weight, columns["margin"])
            target = difference - (margin[:, None] - margin[None])
        losses = -F.logsigmoid(target) if self.kind == "log_sigmoid" else -torch.sigmoid(target)
        if self.centering_coefficient:
            losses = losses + self.centering_coefficient * self._centering(scores)
        loss = weighted_sum(pair_weight, losses)
        level = (scores[:, None] + scores[None]) / 2
        seen = {"accuracy": difference > 0, "margin": difference, "mean_reward": level}
        return loss, {"loss": loss.detach(), **weighted_metrics(pair_weight, seen)}

    def _centering(self, scores: Float[Tensor, " rows"]) -> Float[Tensor, "rows rows"]:
        if self.centering == "sum":
            return (scores[:, None] + scores[None]).square()
        return (scores.square()[:, None] + scores.square()[None]) / 2


@dataclass(frozen=True)
class RankingQuality:
    """Quality of scores as a means to put rankings in order. Equal scores never count as right."""

    pair_accuracy: Float[Tensor, ""]
    """Share of all ordered pairs whose better text has the higher score."""
    exact_list_accuracy: Float[Tensor, ""]
    """Share of rankings all of whose pairs are right."""
    kendall_tau: Float[Tensor, ""]
    """Mean over rankings of (right - wrong) / pairs; equal scores are neither."""


@check_shapes
def ranking_quality(
    scores: Float[Tensor, " rows"], groups: Int64[Tensor, " rows"], ranks: Int64[Tensor, " rows"]
) -> RankingQuality:
    """Compare scores with rankings. Rankings of nothing but ties are left out; without any pair the result is NaN."""
    _, index = torch.unique(groups, return_inverse=True)
    count = int(index.max()) + 1 if len(index) else 0
    better, worse = ordered_pair_rows(index, ranks)
    difference = scores[better].double() - scores[worse].double()
    owner = index[better]
    total = row_sums(torch.ones_like(difference), owner, count)
    right = row_sums((difference > 0).double(), owner, count)
    wrong = row_sums((difference < 0).double(), owner, count)
    ranked = total > 0
    return RankingQuality(
        pair_accuracy=(difference > 0).double().mean(),
        exact_list_accuracy=(right == total)[ranked].double().mean(),
        kendall_tau=((right - wrong) / total)[ranked].mean(),
    )


@check_shapes
def ordered_pair_rows(
    index: Int64[Tensor, " rows"], ranks: Int64[Tensor, " rows"]
) -> tuple[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]]:
    """List better and worse row of each ordered pair, ranking by ranking, so that no matrix of all rows is made.

    Args:
        index: number of each row's ranking, from 0 without gaps.
        ranks: 0 is best; equal ranks are ties.
    """
    order = torch.argsort(index, stable=True)
    better, worse = [], []
    for rows in torch.split(order, torch.bincount(index).tolist()):
        first, second = torch.nonzero(ranks[rows][:, None] < ranks[rows][None], as_tuple=True)
        better.append(rows[first])
        worse.append(rows[second])
    empty = order[:0]
    return torch.cat([empty, *better]), torch.cat([empty, *worse])


@dataclass(frozen=True)
class CostLoss:
    """Bradley-Terry loss on costs with sign terms. Cost above 0 means harmful.

    For each pair of a safer and a less safe answer: -log s(C_less_safe - C_safer)
    + class_weight x (-log s(-sign C)) of both + regularisation x mean of both squares.
    Row columns: `weight`, `group` as for `RankingLoss`; `rank`, 0 is safest; `sign`, +1 safe and -1 unsafe.
    """

    class_weight: float = 1.0
    regularisation: float = 0.001
    needs_entropy: ClassVar[bool] = False

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `scores` [rows], the costs."""
        weight = columns["weight"]
        costs = where_weighted(weight, outputs["scores"])
        sign = columns["sign"].to(costs.dtype)
        pairs = ordered_pairs(columns["group"], columns["rank"])
        pair_weight = torch.where(pairs, weight[:, None], 0.0)
        difference = costs[None] - costs[:, None]
        classes = -F.logsigmoid(-sign * costs)
        squares = costs.square()
        losses = -F.logsigmoid(difference) + self.class_weight * (classes[:, None] + classes[None])
        losses = losses + self.regularisation * (squares[:, None] + squares[None]) / 2
        loss = weighted_sum(pair_weight, losses)
        right = (torch.sign(costs) == -sign).to(costs.dtype)
        seen = {"accuracy": difference > 0, "accuracy_sign": (right[:, None] + right[None]) / 2, "margin": difference}
        return loss, {"loss": loss.detach(), **weighted_metrics(pair_weight, seen)}

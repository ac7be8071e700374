"""Cost models: which answer is more harmful, and whether each is harmful at all (Dai et al. 2024, safe-rlhf)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_ray.algorithms.losses import Metrics, weighted_metrics, weighted_sum, where_weighted
from rlhf_ray.algorithms.ranking import ordered_pairs


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

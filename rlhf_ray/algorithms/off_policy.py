"""Corrections for samples that another policy, or another numerical engine, wrote."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.kl import kl_estimate
from rlhf_ray.algorithms.losses import Metrics
from rlhf_ray.algorithms.segments import row_index, row_means, row_sums
from rlhf_ray.algorithms.shapes import check_shapes
from rlhf_ray.algorithms.statistics import masked_mean

LOG_RATIO_LIMIT = 20.0
"""Log-ratios are held within +- this before their exponential is taken (verl)."""


@dataclass(frozen=True)
class OffPolicyCorrection:
    """Importance weights u = exp(logprob of the trainer's old policy - behaviour logprob), bounded.

    | known as | level | beyond | kept |
    |---|---|---|---|
    | truncated (TIS) | token | truncate | ratio |
    | icepop | token | mask | ratio |
    | sequence truncated | sequence | truncate | ratio |
    | sequence mask (TRL) | sequence | mask | ratio |
    | sequence mask with token weights (OpenRLHF, NeMo-RL) | mean | mask | token_ratio |
    | masks without weights (SkyRL) | token, mean or every | mask | one |
    """

    level: Literal["token", "sequence", "mean", "every"] = "token"
    """Whose ratio the bounds judge: the token's; the row's, a product over its tokens; the geometric mean over the row;
    or every token of the row, where one outside drops the row."""
    beyond: Literal["truncate", "mask"] = "truncate"
    """What happens outside the bounds, which are inclusive: the ratio is clamped to them, or the weight is 0."""
    low: float = 0.0
    high: float = 2.0
    kept: Literal["ratio", "token_ratio", "one"] = "ratio"
    """Weight of what stays: the ratio that was judged, the unbounded ratio of the token, or 1."""
    normalise: bool = False
    """Divide the weights by their mean over the batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"bounds of importance weights must be 0 <= low <= high, not {self.low} and {self.high}")
        if self.level == "every" and (self.beyond == "truncate" or self.kept == "ratio"):
            raise ValueError(
                "level 'every' judges rows without a ratio: use beyond='mask', kept='token_ratio' or 'one'"
            )
        if self.beyond == "truncate" and self.kept != "ratio":
            raise ValueError("beyond='truncate' keeps the truncated ratio: kept must be 'ratio'")

    @check_shapes
    def __call__(
        self,
        old_logprobs: Float[Tensor, " tokens"],
        behaviour_logprobs: Float[Tensor, " tokens"],
        learned: Bool[Tensor, " tokens"],
        offsets: Int64[Tensor, " rows+1"],
    ) -> tuple[Float[Tensor, " tokens"], Metrics]:
        """Weigh the tokens by constants for the loss, 0 where not learned; return diagnostics too.

        Args:
            old_logprobs: the trainer's, before the update.
            behaviour_logprobs: the engine's, when it sampled.
            learned: tokens that count.
            offsets: boundaries of the rows.
        """
        log_ratio = torch.where(learned, (old_logprobs - behaviour_logprobs).detach(), 0.0)
        rows = row_index(offsets)
        judged = self._judged(log_ratio, learned, rows, len(offsets) - 1)
        inside = (judged >= self.low) & (judged <= self.high)
        if self.level == "every":
            outside = row_sums((learned & ~inside).long(), rows, len(offsets) - 1)
            inside = (outside == 0)[rows]
        weights = self._weights(judged, _ratio(log_ratio), inside)
        weights = torch.where(learned, weights, 0.0)
        if self.normalise:
            weights = (weights / masked_mean(weights, learned).clamp(min=1e-8)).to(weights.dtype)
        return weights, _diagnostics(weights, inside, old_logprobs, behaviour_logprobs, learned)

    def _judged(
        self, log_ratio: Float[Tensor, " tokens"], learned: Bool[Tensor, " tokens"], rows: Tensor, count: int
    ) -> Float[Tensor, " tokens"]:
        if self.level == "sequence":
            log_ratio = row_sums(log_ratio, rows, count)[rows]
        elif self.level == "mean":
            log_ratio = row_means(log_ratio, learned, rows, count)[rows]
        return _ratio(log_ratio)

    def _weights(
        self, judged: Float[Tensor, " tokens"], ratio: Float[Tensor, " tokens"], inside: Bool[Tensor, " tokens"]
    ) -> Float[Tensor, " tokens"]:
        if self.beyond == "truncate":
            return judged.clamp(self.low, self.high)
        kept = {"ratio": judged, "token_ratio": ratio, "one": torch.ones_like(ratio)}[self.kept]
        return torch.where(inside, kept, 0.0)


def _ratio(log_ratio: Float[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def _diagnostics(
    weights: Float[Tensor, " tokens"],
    inside: Bool[Tensor, " tokens"],
    old: Float[Tensor, " tokens"],
    behaviour: Float[Tensor, " tokens"],
    learned: Bool[Tensor, " tokens"],
) -> Metrics:
    """Return the effective sample size, the share outside the bounds and the mismatch KL.
    The size is a share of the tokens: (sum w)^2 / (n sum w^2).

    The mismatch is KL(behaviour || trainer), whose tokens the behaviour policy sampled, by k1 and k3.
    """
    chosen = weights[learned].double()
    squares = chosen.square().sum() * max(chosen.numel(), 1)
    k3 = kl_estimate(behaviour, old, "k3").detach()
    return {
        "sampling/effective_sample_size": chosen.sum().square() / squares.clamp(min=torch.finfo(torch.float64).tiny),
        "sampling/out_of_bounds": masked_mean((~inside).double(), learned),
        "sampling/weight_mean": masked_mean(weights, learned),
        "sampling/mismatch_kl_k1": masked_mean((behaviour - old).detach(), learned),
        "sampling/mismatch_kl_k3": masked_mean(k3, learned),
    }

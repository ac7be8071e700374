"""Losses of policies from advantages. Each token's surrogate differs; KL, entropy and corrections are shared.

With weights that sum to 1 over an optimizer step the metrics add up to their means over learned tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.kl import KLTerm
from rlhf_ray.algorithms.losses import Metrics, weighted_metrics, weighted_sum, where_weighted
from rlhf_ray.algorithms.segments import token_row_sums
from rlhf_ray.algorithms.shapes import check_shapes

SEQUENCE_LOG_RATIO_LIMIT = 10.0
"""Ratios of whole responses are held below exp(10) (verl, SkyRL)."""


@dataclass(frozen=True)
class PolicyBatch:
    """Tokens of a micro-batch as the surrogates see them: 0 wherever nothing is learned."""

    logprobs: Float[Tensor, " tokens"]
    log_ratio: Float[Tensor, " tokens"]
    """New minus old log-probability, held within the loss's limit."""
    advantages: Float[Tensor, " tokens"]
    learned: Bool[Tensor, " tokens"]
    rows: Int64[Tensor, " tokens"]


@dataclass(frozen=True, kw_only=True)
class PolicyLoss(ABC):
    """Base of all policy losses.

    Token columns: `weight`, `rows`, `old_logprobs`, `advantages`; `reference_logprobs` if `kl` is given; optionally
    `importance_weights`, constants that multiply the surrogate, as off-policy corrections make them.
    """

    entropy_coefficient: float = 0.0
    """Weight of the entropy bonus; the entropy is that of the sampling temperature."""
    kl: KLTerm | None = None
    """KL to the reference in the loss."""
    log_ratio_limit: float | None = 20.0
    """Log-ratios are held within +- this and have no gradient beyond, so that their exponential stays finite."""

    @property
    def needs_entropy(self) -> bool:
        """Whether the loss has an entropy bonus."""
        return self.entropy_coefficient != 0

    @abstractmethod
    def surrogate(self, batch: PolicyBatch) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
        """Return the loss of each token and metrics of each token."""

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `logprobs` [tokens], and `entropy` [tokens] if there is a bonus."""
        weight = columns["weight"]
        batch = self._prepare(outputs["logprobs"], columns)
        losses, observed = self.surrogate(batch)
        if "importance_weights" in columns:
            losses = losses * where_weighted(weight, columns["importance_weights"])
        policy_loss = weighted_sum(weight, losses)
        total = policy_loss
        if self.kl is not None:
            reference = where_weighted(weight, columns["reference_logprobs"])
            kl = self.kl(batch.logprobs, reference, batch.log_ratio.exp())
            total = total + self.kl.coefficient * weighted_sum(weight, kl)
            observed["loss/kl_avg"] = kl
        if self.needs_entropy:
            entropy = where_weighted(weight, outputs["entropy"])
            total = total - self.entropy_coefficient * weighted_sum(weight, entropy)
            observed["policy/entropy_avg"] = entropy
        metrics = weighted_metrics(weight, {**_ratio_metrics(batch), **observed})
        return total, {"loss/policy_avg": policy_loss.detach(), **metrics}

    def _prepare(self, logprobs: Float[Tensor, " tokens"], columns: Mapping[str, Tensor]) -> PolicyBatch:
        weight = columns["weight"]
        new = where_weighted(weight, logprobs)
        log_ratio = new - where_weighted(weight, columns["old_logprobs"])
        if self.log_ratio_limit is not None:
            log_ratio = log_ratio.clamp(-self.log_ratio_limit, self.log_ratio_limit)
        advantages = where_weighted(weight, columns["advantages"])
        return PolicyBatch(new, log_ratio, advantages, weight != 0, columns["rows"])


def _ratio_metrics(batch: PolicyBatch) -> dict[str, Tensor]:
    """Return half the mean square (TRL's `approxkl`, k2), the mean difference (k1) and the ratio.

    The ratio's variance is taken around 1, its mean under the old policy, so that it is a mean over tokens too.
    """
    ratio = batch.log_ratio.detach().exp()
    return {
        "policy/approxkl_avg": batch.log_ratio.square() / 2,
        "policy/kl_avg": -batch.log_ratio,
        "val/ratio": ratio,
        "val/ratio_var": (ratio - 1).square(),
    }


@check_shapes
def clipped_surrogate(
    ratio: Float[Tensor, " tokens"],
    advantages: Float[Tensor, " tokens"],
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
    """Return -min(ratio A, clip(ratio, 1 - low, 1 + high) A), for A < 0 at most -c A (dual clip, Ye et al. 2020).

    Metrics: shares of tokens that either clip holds; a token with A = 0 never counts.
    """
    plain = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    losses = torch.maximum(plain, clipped)
    observed = {"policy/clipfrac_avg": clipped > plain}
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        held = (advantages < 0) & (ceiling < losses)
        losses = torch.where(held, ceiling, losses)
        observed["policy/dual_clipfrac_avg"] = held
    return losses, observed


@dataclass(frozen=True)
class ClippedPolicyLoss(PolicyLoss):
    """PPO's clipped surrogate (Schulman et al. 2017), of tokens or of whole responses.

    With `level="sequence"` the ratio is that of the whole response, the exponential of the summed log-ratios (TRL's
    RLOO loss); advantages must then be equal within a row, as group estimators make them.
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float | None = None
    """Bound c > 1 on the ratio where the advantage is negative."""
    level: Literal["token", "sequence"] = "token"

    def surrogate(self, batch: PolicyBatch) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
        """See `clipped_surrogate`."""
        log_ratio = batch.log_ratio
        if self.level == "sequence":
            log_ratio = token_row_sums(log_ratio, batch.rows).clamp(max=SEQUENCE_LOG_RATIO_LIMIT)
        return clipped_surrogate(log_ratio.exp(), batch.advantages, self.clip_low, self.clip_high, self.dual_clip)


@dataclass(frozen=True)
class GSPOLoss(PolicyLoss):
    """Group sequence policy optimisation (Zheng et al. 2025).

    The ratio of a row is the exponential of its mean log-ratio. `gradient="token"` is GSPO-token (verl, SkyRL): the
    row's ratio weighs each token's own advantage. `"sequence"` differentiates the ratio itself (NeMo-RL, OpenRLHF,
    TRL). They differ only where advantages differ within a row.
    """

    clip_low: float = 3e-4
    clip_high: float = 4e-4
    gradient: Literal["token", "sequence"] = "token"

    def surrogate(self, batch: PolicyBatch) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
        """See `clipped_surrogate`, with the ratio of the row."""
        lengths = token_row_sums(batch.learned.to(batch.log_ratio.dtype), batch.rows).clamp(min=1)
        mean = token_row_sums(batch.log_ratio, batch.rows) / lengths
        if self.gradient == "token":
            mean = mean.detach() + batch.logprobs - batch.logprobs.detach()
        ratio = mean.clamp(max=SEQUENCE_LOG_RATIO_LIMIT).exp()
        return clipped_surrogate(ratio, batch.advantages, self.clip_low, self.clip_high)


@dataclass(frozen=True)
class CISPOLoss(PolicyLoss):
    """Clipped importance sampling (MiniMax-M1, 2025): REINFORCE weighted by the clipped ratio, without its gradient.

    Every token keeps a gradient. `clip_low >= 1` switches the lower bound off, as in the paper.
    """

    clip_low: float = 1.0
    clip_high: float = 4.0

    def surrogate(self, batch: PolicyBatch) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
        """Return -clip(ratio) A logprob."""
        ratio = batch.log_ratio.detach().exp()
        held = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        return -held * batch.advantages * batch.logprobs, {"policy/clipfrac_avg": held != ratio}


@dataclass(frozen=True)
class SAPOLoss(PolicyLoss):
    """Soft adaptive policy optimisation (Gao et al. 2025): a sigmoid gate around ratio 1 in place of the clip.

    f(ratio) = 4 / tau x sigmoid(tau (ratio - 1)), with a tau of its own for advantages above 0 and for the others.
    """

    temperature_positive: float = 1.0
    temperature_negative: float = 1.05

    def surrogate(self, batch: PolicyBatch) -> tuple[Float[Tensor, " tokens"], dict[str, Tensor]]:
        """Return -f(ratio) A."""
        tau = torch.full_like(batch.advantages, self.temperature_negative)
        tau = tau.masked_fill(batch.advantages > 0, self.temperature_positive)
        gate = torch.sigmoid(tau * (batch.log_ratio.exp() - 1)) * 4 / tau
        return -gate * batch.advantages, {}


class NamedLoss(NamedTuple):
    """A policy loss as configs know it."""

    loss: PolicyLoss
    """With its paper's settings."""
    formula: str
    """Loss of a token of advantage A, rho the ratio of its new to its old probability, as docs/algorithms.md has it."""


POLICY_LOSSES: Mapping[str, NamedLoss] = {
    "clip": NamedLoss(
        ClippedPolicyLoss(), "-min(rho A, clip(rho, 1 - low, 1 + high) A); with dual clip, for A < 0 at most -c A"
    ),
    "clip_sequence": NamedLoss(ClippedPolicyLoss(level="sequence"), "the same with the product of the row's rho"),
    "gspo": NamedLoss(GSPOLoss(), "the same with the geometric mean of the row's rho"),
    "cispo": NamedLoss(CISPOLoss(), "-clip(rho) A logprob, the ratio without gradient"),
    "sapo": NamedLoss(SAPOLoss(), "-4 / tau x sigmoid(tau (rho - 1)) A"),
}
"""By `algorithm.policy_loss`; `rlhf_ray.config.algorithm` has their defaults and checks in a table of the same name."""

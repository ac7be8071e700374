"""KL divergence between policy and reference: estimates of a token, a loss term, controllers of the coefficient."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_ray.algorithms.shapes import check_shapes

Estimator = Literal["k1", "abs", "k2", "k3", "k1+", "k3+"]

K3_DIFFERENCE_LIMIT = 20.0
K3_VALUE_LIMIT = 10.0
"""k3 is exponential; verl and SkyRL hold it within these limits."""

ADAPTIVE_ERROR_LIMIT = 0.2
"""Largest relative error that one update of the adaptive controller reacts to (Ziegler et al. 2019)."""
COEFFICIENT_RANGE = 1e-6, 1e6
"""Where an adaptive coefficient stays: a target out of reach would drive it to 0, which it never leaves, or to
infinity. One that begins outside goes no further out."""


@check_shapes
def kl_estimate(
    logprobs: Float[Tensor, "*n"],
    reference: Float[Tensor, "*n"],
    estimator: Estimator,
    *,
    clamp_k3: bool = True,
) -> Float[Tensor, "*n"]:
    """Estimate KL(policy || reference) from log-probabilities of tokens that the policy sampled (Schulman 2020).

    With d = logprobs - reference: k1 = d (unbiased, may be negative), abs = |d|, k2 = d^2 / 2 (biased value, but its
    gradient is that of the KL), k3 = exp(-d) - 1 + d (unbiased, never negative). `k1+` and `k3+` have the value of k1
    and k3 and the gradient of k2.

    Args:
        logprobs: of the policy.
        reference: of the reference.
        estimator: which.
        clamp_k3: hold d within 20 and k3 within 10; a clamped element has no gradient. False computes the formula as
            it stands, which overflows where the reference finds a token far more likely.
    """
    difference = logprobs - reference
    if estimator in ("k1+", "k3+"):
        base = kl_estimate(logprobs, reference, "k1" if estimator == "k1+" else "k3", clamp_k3=clamp_k3)
        square = difference.square() / 2
        return square + (base - square).detach()
    if estimator == "k1":
        return difference
    if estimator == "abs":
        return difference.abs()
    if estimator == "k2":
        return difference.square() / 2
    if estimator != "k3":
        raise ValueError(f"no KL estimator is named {estimator!r}; choose k1, abs, k2, k3, k1+ or k3+")
    if not clamp_k3:
        return torch.expm1(-difference) + difference
    held = difference.clamp(-K3_DIFFERENCE_LIMIT, K3_DIFFERENCE_LIMIT)
    return (torch.expm1(-held) + held).clamp(-K3_VALUE_LIMIT, K3_VALUE_LIMIT)


@dataclass(frozen=True)
class KLTerm:
    """KL to the reference as a term of the policy's loss (Shao et al. 2024).

    `weighting` multiplies each token's estimate by a factor through which gradients flow: `score` is
    exp(logprob - logprob without gradient), of value 1, which adds the score-function part of the gradient (NeMo-RL);
    `ratio` is the probability ratio to the old policy, which corrects for samples that the old policy wrote
    (DeepSeek-V3.2).
    """

    coefficient: float
    estimator: Estimator = "k3"
    weighting: Literal["none", "score", "ratio"] = "none"

    @check_shapes
    def __call__(
        self,
        logprobs: Float[Tensor, " tokens"],
        reference: Float[Tensor, " tokens"],
        ratio: Float[Tensor, " tokens"],
    ) -> Float[Tensor, " tokens"]:
        """Estimate the KL of each token, not yet times the coefficient; `ratio` is that to the old policy."""
        estimate = kl_estimate(logprobs, reference, self.estimator)
        if self.weighting == "score":
            return torch.exp(logprobs - logprobs.detach()) * estimate
        return ratio * estimate if self.weighting == "ratio" else estimate


@dataclass(frozen=True)
class FixedKL:
    """A coefficient that stays."""

    coefficient: float

    def update(self, kl: float, samples: int) -> "FixedKL":
        """Return itself."""
        return self


@dataclass(frozen=True)
class AdaptiveKL:
    """A coefficient that moves until the KL meets its target (Ziegler et al. 2019, section 2.2).

    error = clip(kl / target - 1, -0.2, 0.2); coefficient grows by the factor 1 + error * samples / horizon, in which a
    batch counts as one horizon at most: the factor of a batch of five or more would be 0 or negative. It stays within
    1e-6 ... 1e6. All its state is the coefficient.
    """

    coefficient: float
    target: float
    """KL of a response, in nats."""
    horizon: float
    """Samples over which the coefficient moves."""

    def update(self, kl: float, samples: int) -> "AdaptiveKL":
        """Return the controller after a batch of `samples` responses whose mean KL is `kl`, measured as the target.

        A KL that is NaN says nothing, and moves nothing.
        """
        if math.isnan(kl):
            return self
        error = min(max(kl / self.target - 1, -ADAPTIVE_ERROR_LIMIT), ADAPTIVE_ERROR_LIMIT)
        moved = self.coefficient * (1 + error * min(samples / self.horizon, 1.0))
        lowest, highest = COEFFICIENT_RANGE
        return replace(self, coefficient=min(max(moved, min(lowest, self.coefficient)), max(highest, self.coefficient)))

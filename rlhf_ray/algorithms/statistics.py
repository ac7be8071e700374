"""Statistics over the elements where a mask is true. They are taken in float64, so that order hardly matters."""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from rlhf_ray.algorithms.shapes import check_shapes

VARIANCE_FLOOR = 1e-8
"""Added to a variance before its root, so that equal values whiten to 0."""


@check_shapes
def masked_mean(values: Shaped[Tensor, "*n"], mask: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Return the mean where the mask is true; 0 if it never is."""
    chosen = values[mask].double()
    return chosen.sum() / max(chosen.numel(), 1)


@check_shapes
def masked_variance(values: Shaped[Tensor, "*n"], mask: Bool[Tensor, "*n"], correction: int = 1) -> Float[Tensor, ""]:
    """Return the variance where the mask is true; 0 for fewer than two elements.

    Args:
        values: any numbers; those outside the mask are not looked at.
        mask: which count.
        correction: 1 divides by n - 1 (Bessel), 0 by n.
    """
    chosen = values[mask].double()
    if chosen.numel() < 2:
        return chosen.new_zeros(())
    return chosen.var(correction=correction)


@check_shapes
def whiten(
    values: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"], shift_mean: bool = True, correction: int = 1
) -> Float[Tensor, "*n"]:
    """Shift and scale the values where the mask is true to mean 0 and variance 1; the others become 0.

    (x - mean) / sqrt(variance + 1e-8), mean and variance over all elements of the mask.

    Args:
        values: any shape; values outside the mask may be NaN.
        mask: which elements count and are kept.
        shift_mean: False adds the mean back after scaling, for rewards, whose level means something.
        correction: 1 for the unbiased variance (verl, TRL), 0 for the biased one (OpenRLHF).
    """
    mean = masked_mean(values, mask)
    scale = torch.rsqrt(masked_variance(values, mask, correction) + VARIANCE_FLOOR)
    whitened = (values.double() - mean) * scale
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0.0).to(values.dtype)


@check_shapes
def explained_variance(
    values: Float[Tensor, " tokens"], returns: Float[Tensor, " tokens"], mask: Bool[Tensor, " tokens"]
) -> Float[Tensor, ""]:
    """Return the share of the returns' variance that values explain: 1 - Var(returns - values) / Var(returns).

    1 is perfect, 0 no better than a constant; below 0 is worse than that. Returns that do not vary give 0 divided by
    the floor 1e-8, or a large negative number if the values vary.
    """
    residual = masked_variance(returns - values, mask, correction=0)
    return 1 - residual / masked_variance(returns, mask, correction=0).clamp(min=VARIANCE_FLOOR)

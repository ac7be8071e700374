"""What coupled preference losses need from a first pass over the whole optimizer step, without gradients."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from rlhf_ray.algorithms.shapes import check_shapes

PairValues = Float[Tensor, " pairs"]


@check_shapes
def aot_statistic(
    chosen: PairValues, rejected: PairValues, reference_chosen: PairValues, reference_rejected: PairValues
) -> PairValues:
    """For each pair, the reference's difference of the same rank as the policy's own among the pairs of the step."""
    return _of_equal_rank(chosen - rejected, reference_chosen - reference_rejected)


@check_shapes
def aot_unpaired_statistics(chosen: PairValues, rejected: PairValues) -> tuple[PairValues, PairValues]:
    """For each chosen log-ratio the rejected one of equal rank, and the other way round."""
    return _of_equal_rank(chosen, rejected), _of_equal_rank(rejected, chosen)


@check_shapes
def bco_shift(chosen: PairValues, rejected: PairValues, beta: float) -> Float[Tensor, ""]:
    """Mean reward, beta times log-ratio, of all responses of the step, chosen and rejected (Jung et al. 2024)."""
    return beta * (chosen.mean() + rejected.mean()) / 2


@check_shapes
def kto_baseline(logprobs: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """z0 of KTO: mean log-ratio of mismatched prompts and responses, at least 0 (Ethayarajh et al. 2024).

    Args:
        logprobs: the policy's summed log-probabilities of responses to other rows' prompts.
        reference: those of the reference.
    """
    return (logprobs - reference).mean().clamp(min=0)


@check_shapes
def length_desensitised(
    positions: Shaped[Tensor, " tokens"], shorter: Shaped[Tensor, " tokens"], alpha: float
) -> Float[Tensor, " tokens"]:
    """LD-DPO (Liu et al. 2024): tokens beyond the length of the pair's shorter response count only `alpha`.

    The result takes the place of the `written` column, for policy and reference alike.

    Args:
        positions: of each token in its response, from 0.
        shorter: for each token, the length of the pair's shorter response.
        alpha: in [0, 1]; 1 is plain DPO.
    """
    return torch.ones_like(positions, dtype=torch.float64).masked_fill(positions >= shorter, alpha)


def _of_equal_rank(own: PairValues, other: PairValues) -> PairValues:
    """For each element of `own`, the element of `other` that has its rank."""
    result = torch.empty_like(other)
    result[own.argsort()] = other.sort().values
    return result

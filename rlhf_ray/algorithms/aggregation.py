"""Aggregation of token losses as one weight for each token, fixed over the whole optimizer step."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.segments import row_index, row_sums
from rlhf_ray.algorithms.shapes import check_shapes

Aggregation = Literal[
    "token_mean", "token_sum", "sequence_mean_token_mean", "sequence_mean_token_sum", "sequence_mean_token_sum_norm"
]


@check_shapes
def token_weights(
    mode: Aggregation,
    learned: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    constant: float | None = None,
    count_empty_rows: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, " tokens"]:
    """Weigh each token's loss over the rows of one optimizer step; 0 where not learned.

    - `token_mean`: 1 / learned tokens of the step (DAPO).
    - `token_sum`: 1.
    - `sequence_mean_token_mean`: 1 / rows / learned tokens of the row (GRPO).
    - `sequence_mean_token_sum`: 1 / rows.
    - `sequence_mean_token_sum_norm`: 1 / rows / constant (Dr. GRPO; the constant is the longest response allowed).

    Args:
        mode: one of the above.
        learned: tokens that the loss learns from.
        offsets: boundaries of the rows.
        constant: of `sequence_mean_token_sum_norm`.
        count_empty_rows: count rows without learned tokens among the rows (TRL, SkyRL). By default they are left out,
            so that a masked row does not shrink the step (verl, OpenRLHF).
        dtype: of the result.

    Raises:
        ValueError: the mode is unknown, or its constant is missing.
    """
    rows = row_index(offsets)
    lengths = row_sums(learned.long(), rows, len(offsets) - 1)
    counted = lengths >= 0 if count_empty_rows else lengths > 0
    count = counted.sum().clamp(min=1).double()
    if mode == "token_mean":
        weights = 1 / lengths.sum().clamp(min=1).double().expand(len(learned))
    elif mode == "token_sum":
        weights = torch.ones_like(learned, dtype=torch.float64)
    elif mode == "sequence_mean_token_mean":
        weights = 1 / (count * lengths.clamp(min=1))[rows]
    elif mode == "sequence_mean_token_sum":
        weights = 1 / count.expand(len(learned))
    elif mode == "sequence_mean_token_sum_norm":
        if constant is None:
            raise ValueError("sequence_mean_token_sum_norm needs its constant, the longest response allowed")
        weights = 1 / (count * constant).expand(len(learned))
    else:
        raise ValueError(f"no aggregation is named {mode!r}")
    return torch.where(learned, weights, 0.0).to(dtype)

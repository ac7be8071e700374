"""Operations on ragged rows stored end to end: sums, means, last elements and linear recurrences, without padding."""

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from rlhf_ray.algorithms.shapes import check_shapes


def row_index(offsets: Int64[Tensor, " rows+1"]) -> Int64[Tensor, " tokens"]:
    """Return the row of each token, from the rows' boundaries."""
    return torch.repeat_interleave(torch.arange(len(offsets) - 1, device=offsets.device), offsets.diff())


@check_shapes
def row_sums(values: Shaped[Tensor, " tokens"], rows: Int64[Tensor, " tokens"], count: int) -> Shaped[Tensor, " rows"]:
    """Sum each row's values; 0 for a row without tokens.

    Taken in float64: one after another in float32, the sum of a long row loses what its last tokens add.
    """
    wide = values.double() if values.is_floating_point() else values
    return wide.new_zeros(count).index_add(0, rows, wide).to(values.dtype)


@check_shapes
def row_means(
    values: Float[Tensor, " tokens"], mask: Bool[Tensor, " tokens"], rows: Int64[Tensor, " tokens"], count: int
) -> Float[Tensor, " rows"]:
    """Average each row's values where the mask is true; 0 for a row where it never is."""
    sums = row_sums(torch.where(mask, values, 0.0), rows, count)
    return sums / row_sums(mask.to(values.dtype), rows, count).clamp(min=1)


def dense_rows(rows: Int64[Tensor, " tokens"]) -> Int64[Tensor, " tokens"]:
    """Give the rows that have tokens the numbers 0, 1, ... in their order.

    The result is below the number of tokens, so it can index a buffer of that size without asking the device how many
    rows there are.
    """
    changes = torch.zeros_like(rows)
    changes[1:] = (rows[1:] != rows[:-1]).long()
    return changes.cumsum(0)


@check_shapes
def token_row_sums(values: Float[Tensor, " tokens"], rows: Int64[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Return, for each token, the sum of the values of its row."""
    dense = dense_rows(rows)
    return row_sums(values, dense, len(values))[dense]


@check_shapes
def last_of_rows(mask: Bool[Tensor, " tokens"], rows: Int64[Tensor, " tokens"], count: int) -> Int64[Tensor, " rows"]:
    """Find the last token of each row where the mask is true; -1 for a row where it never is."""
    positions = torch.where(mask, torch.arange(len(mask), device=mask.device), -1)
    start = torch.full((count,), -1, device=mask.device)
    return start.scatter_reduce(0, rows, positions, "amax")


@check_shapes
def backward_recurrence(
    values: Float[Tensor, " tokens"], decay: Float[Tensor, " tokens"], longest: int
) -> Float[Tensor, " tokens"]:
    """Solve y[t] = values[t] + decay[t] y[t+1] from the end.

    Rows are separated by decay 0 at their last token. Recursive doubling (Hillis and Steele 1986): after step k each y
    covers 2^k tokens, so a batch takes log2(longest) vector operations instead of a loop over tokens.

    Args:
        values: the inhomogeneous term.
        decay: factor of the next token's result; 0 at the last token of each row.
        longest: tokens of the longest row.
    """
    result, decay = values.clone(), decay.clone()
    shift = 1
    while shift < longest:
        # A zero decay cuts the row off; a plain product would carry NaN from the next row over it.
        carried = torch.where(decay[:-shift] != 0, decay[:-shift] * result[shift:], 0.0)
        result[:-shift] = result[:-shift] + carried
        reach = decay[:-shift] * decay[shift:]
        decay[:-shift] = reach
        decay[-shift:] = 0
        shift *= 2
    return result

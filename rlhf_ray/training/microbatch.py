"""Rows of a ragged batch laid out for one forward pass, padded on the right or packed into one row, and their sums.

`training.ragged` has the third way: end to end, with attention within rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int, Int64, Shaped
from torch import Tensor

from rlhf_ray.algorithms.losses import Loss
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.models.ragged_attention import RaggedRows

STAND_IN_TOKENS = 2
"""Length of the row that an empty micro-batch computes with weight 0, so that collectives inside the pass line up."""
START_TOKENS_CPU = 48
"""Tokens whose forward and backward pass takes as long as what a pass takes to start, for small models on CPU."""

START_TOKENS_GPU = 512


@dataclass(frozen=True)
class Microbatch:
    """Inputs of one pass, on the device. Response tokens are in flat order."""

    input_ids: Int[Tensor, "rows length"]
    """One row if packed. Padding is on the right, where causal attention never looks, so no mask is needed."""
    position_ids: Int[Tensor, "rows length"] | None
    """Restarting at 0 for each sequence if packed; None lets the network count."""
    before: Int[Tensor, " tokens"]
    """Where in the flattened input each response token is predicted: one place before it."""
    targets: Int[Tensor, " tokens"]
    without_context: Bool[Tensor, " tokens"] | None
    """First tokens of rows that have no prompt; None if there are none."""
    last: Int[Tensor, " rows"]
    """Where in the flattened input each row's last token is."""
    rows: Int[Tensor, " tokens"]
    """Index within the micro-batch of each token's row."""
    flat: Int64[np.ndarray, " tokens"]
    """Where in the whole batch's flat order these tokens are."""
    row_index: Int64[np.ndarray, " rows"]
    """Which rows of the whole batch these are."""
    ragged: RaggedRows | None = None
    """Where the input is one long row: what of it belongs together."""
    stand_in: bool = False
    """It has no rows of its own: its results count nothing."""


def build_microbatch(batch: TokenBatch, rows: np.ndarray, packed: bool, device: torch.device) -> Microbatch:
    """Lay out some rows of a batch; no rows give a stand-in.

    Args:
        batch: the whole batch.
        rows: which rows, in the order that results are wanted in.
        packed: all rows end to end in one, for attention kernels of variable length.
        device: where to put the tensors.
    """
    if len(rows) == 0:
        return _stand_in(batch, device)
    rows = np.asarray(rows, dtype=np.int64)
    lengths = batch.lengths[rows].astype(np.int64)
    prompts = batch.prompt_lengths[rows].astype(np.int64)
    responses = batch.response_lengths[rows].astype(np.int64)
    source = ranges(batch.offsets[:-1][rows], lengths)
    # Place of each row's first token in the flattened input.
    starts = np.cumsum(lengths) - lengths if packed else np.arange(len(rows)) * lengths.max()
    if packed:
        input_ids = batch.ids[source][None]
        position_ids = ranges(np.zeros_like(lengths), lengths)[None]
    else:
        input_ids = np.zeros((len(rows), lengths.max()), dtype=np.int32)
        input_ids.reshape(-1)[ranges(starts, lengths)] = batch.ids[source]
        position_ids = None
    places = ranges(starts + prompts, responses)
    targets = input_ids.reshape(-1)[places]
    token_rows = np.repeat(np.arange(len(rows)), responses)
    orphans = without_context(prompts, responses)
    before = places - 1 if orphans is None else np.where(orphans, places, places - 1)
    return Microbatch(
        input_ids=as_tensor(input_ids, device),
        position_ids=None if position_ids is None else as_tensor(position_ids, device),
        before=as_tensor(before, device),
        targets=as_tensor(targets, device),
        without_context=None if orphans is None else torch.from_numpy(orphans).to(device),
        last=as_tensor(starts + lengths - 1, device),
        rows=as_tensor(token_rows, device),
        flat=ranges(batch.response_offsets[:-1][rows], responses),
        row_index=rows,
    )


def start_tokens(device: torch.device) -> int:
    """Count the tokens that take as long as the start of a pass."""
    return START_TOKENS_CPU if device.type == "cpu" else START_TOKENS_GPU


def join_outputs(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Join outputs of passes, one after the other."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def in_order(rows: np.ndarray, parts: Sequence[Microbatch], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put outputs of a micro-batch's passes, one after the other, in the order of `rows`.

    `scores` are one for each row, all others one for each response token.
    """
    given = np.concatenate([part.row_index for part in parts])
    if parts[0].stand_in or np.array_equal(given, rows):
        return dict(outputs)
    sizes = np.concatenate([np.bincount(part.rows.cpu(), minlength=len(part.row_index)) for part in parts])
    order = np.argsort(given)
    slots = order[np.searchsorted(given, rows, sorter=order)].tolist()
    found = {}
    for name, values in outputs.items():
        pieces = values.split([1] * len(given) if name == "scores" else sizes.tolist())
        found[name] = torch.cat([pieces[slot] for slot in slots])
    return found


def join_columns(
    parts: Sequence[Microbatch],
    columns: Mapping[str, Shaped[np.ndarray, " tokens"]],
    row_columns: Mapping[str, Shaped[np.ndarray, " rows"]],
) -> dict[str, Tensor]:
    """Join columns of passes, one after the other; `rows` counts on from pass to pass."""
    joined = join_outputs([select_columns(part, columns, row_columns) for part in parts])
    before = np.cumsum([0, *(len(part.last) for part in parts)])
    joined["rows"] = torch.cat([part.rows + int(first) for part, first in zip(parts, before[:-1], strict=True)])
    return joined


def select_columns(
    microbatch: Microbatch,
    columns: Mapping[str, Shaped[np.ndarray, " tokens"]],
    row_columns: Mapping[str, Shaped[np.ndarray, " rows"]],
) -> dict[str, Tensor]:
    """Take the micro-batch's part of columns of the whole batch, and `rows`; all zero for a stand-in."""
    device = microbatch.input_ids.device
    chosen: dict[str, Tensor] = {"rows": microbatch.rows}
    for given, index, size in [
        (columns, microbatch.flat, len(microbatch.targets)),
        (row_columns, microbatch.row_index, len(microbatch.last)),
    ]:
        for name, values in given.items():
            part = np.zeros(size, values.dtype) if microbatch.stand_in else values[index]
            chosen[name] = torch.from_numpy(part).to(device, non_blocking=True)
    return chosen


def ranges(starts: np.ndarray, lengths: np.ndarray) -> Int64[np.ndarray, " total"]:
    """Return the ranges start ... start + length - 1, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.arange(total, dtype=np.int64) + np.repeat(starts - (ends - lengths), lengths)


def without_context(prompts: np.ndarray, responses: np.ndarray) -> Bool[np.ndarray, " tokens"] | None:
    """Mark the first tokens of rows that have no prompt, row after row; None if there are none."""
    if prompts.all():
        return None
    mask = np.zeros(int(responses.sum()), dtype=bool)
    firsts = np.cumsum(responses) - responses
    mask[firsts[(prompts == 0) & (responses > 0)]] = True
    return mask


def _stand_in(batch: TokenBatch, device: torch.device) -> Microbatch:
    # Token 0 exists in every vocabulary.
    one = TokenBatch.from_sequences([np.zeros(STAND_IN_TOKENS - 1, np.int32)], [np.zeros(1, np.int32)])
    laid = build_microbatch(one, np.zeros(1, np.int64), False, device)
    empty = np.zeros(0, np.int64)
    return Microbatch(**{**vars(laid), "flat": empty, "row_index": empty, "stand_in": True})


def as_tensor(array: np.ndarray, device: torch.device) -> Tensor:
    """Put integers on the device."""
    return torch.from_numpy(array.astype(np.int64, copy=False)).to(device, non_blocking=True)


@dataclass(frozen=True)
class ExtraBatch:
    """All of its rows, with a loss of its own: their gradients and those of the first batch add up (PPO-ptx)."""

    batch: TokenBatch
    loss: Loss
    columns: Mapping[str, Shaped[np.ndarray, " tokens"]]
    """In flat order, `weight` among them."""
    temperature: float = 1.0
    """Divides a policy's logits; texts that nobody sampled have 1."""


def zero_loss(outputs: Mapping[str, Tensor]) -> Tensor:
    """Return zero; the backward pass runs all the same."""
    return torch.stack([output.sum() for output in outputs.values()]).sum() * 0.0


def accumulate(totals: dict[str, Tensor], metrics: Mapping[str, Tensor], counts: bool) -> None:
    """Add a micro-batch's metrics to `totals`; one that only fills up a rank adds zeros."""
    for name, value in metrics.items():
        added = value.detach() if counts else torch.zeros_like(value)
        totals[name] = totals[name] + added if name in totals else added

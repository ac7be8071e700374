"""Rows laid out end to end without padding, a prompt that several of them share only once, where that costs least."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int64

from rlhf_ray.data.batches import TokenBatch, passes_by_length
from rlhf_ray.models.ragged_attention import AttentionGroup, RaggedRows
from rlhf_ray.training import microbatch
from rlhf_ray.training.microbatch import Microbatch, as_tensor, build_microbatch, ranges

ATTENTION_SHARE = 0.1
"""Part of a token's work that attention and the copies of its rows take."""
GROUP_START_SHARE = 1 / 3
"""Part of the start of a pass that the start of one more group of attention takes."""


def lay_out_passes(
    batch: TokenBatch, rows: np.ndarray, packed: bool, ragged: bool, by_length: bool, device: torch.device
) -> list[Microbatch]:
    """Lay out a micro-batch as the passes that share a backward pass, in the cheapest way that the network takes.

    Put together, their outputs and columns are the micro-batch's.

    Args:
        batch: the whole batch.
        rows: which rows.
        packed: all rows end to end, for attention kernels of variable length.
        ragged: the network takes ragged rows.
        by_length: there may be several passes, each of rows of about one length, so that little is padded. Weights that
            are sharded (ZeRO-3) are gathered in each pass by all ranks together, so there it is one.
        device: where to put the tensors.
    """
    rows = np.asarray(rows, dtype=np.int64)
    if packed or not len(rows):
        return [build_microbatch(batch, rows, packed, device)]
    start = microbatch.start_tokens(device)
    lengths = batch.lengths[rows]
    parts = passes_by_length(lengths, start) if by_length else [np.arange(len(rows))]
    if ragged and _ragged_cost(batch, rows, start) < _padded(lengths, parts) + start * len(parts):
        return [lay_out_ragged(batch, rows, device)]
    return [build_microbatch(batch, rows[part], packed, device) for part in parts]


def lay_out_ragged(batch: TokenBatch, rows: np.ndarray, device: torch.device) -> Microbatch:
    """Lay out some rows as one long row whose attention is within each; see `models.ragged_attention`.

    Positions count on from a shared prompt, and each of its responses is predicted from its last token on.
    """
    rows = np.asarray(rows, dtype=np.int64)
    lengths = batch.lengths[rows]
    prompts = batch.prompt_lengths[rows].astype(np.int64)
    responses = batch.response_lengths[rows].astype(np.int64)
    pieces = _pieces(batch, rows)
    starts = np.cumsum(pieces.lengths) - pieces.lengths
    # A row begins with its first piece, and ends with its last one.
    begins = starts[[numbers[0] for numbers in pieces.rows]]
    ends = (starts + pieces.lengths)[[numbers[-1] for numbers in pieces.rows]]
    places = ranges(ends - responses, responses)
    orphans = microbatch.without_context(prompts, responses)
    before = places - 1
    answered = responses > 0
    before[(np.cumsum(responses) - responses)[answered]] = (begins + np.maximum(prompts - 1, 0))[answered]
    input_ids = batch.ids[ranges(pieces.sources, pieces.lengths)]
    groups = [
        AttentionGroup(tuple(pieces.rows[row] for row in group), int(lengths[group].max()))
        for group in _groups(lengths, microbatch.start_tokens(device))
    ]
    return Microbatch(
        input_ids=as_tensor(input_ids[None], device),
        position_ids=as_tensor(ranges(pieces.positions, pieces.lengths)[None], device),
        before=as_tensor(before, device),
        targets=as_tensor(input_ids[places], device),
        without_context=None if orphans is None else torch.from_numpy(orphans).to(device),
        last=as_tensor(ends - 1, device),
        rows=as_tensor(np.repeat(np.arange(len(rows)), responses), device),
        flat=ranges(batch.response_offsets[:-1][rows], responses),
        row_index=rows,
        ragged=RaggedRows(tuple(pieces.lengths.tolist()), tuple(groups)),
    )


@dataclass(frozen=True)
class _Pieces:
    """Rows cut where a prompt that several of them share ends."""

    sources: Int64[np.ndarray, " pieces"]
    """Where in the batch each begins."""
    lengths: Int64[np.ndarray, " pieces"]
    positions: Int64[np.ndarray, " pieces"]
    """Of its first token within its row."""
    rows: list[tuple[int, ...]]
    """Numbers of the pieces of each row."""


def _pieces(batch: TokenBatch, rows: np.ndarray) -> _Pieces:
    keys = _prompt_keys(batch, rows)
    answers = Counter(keys)
    found: list[tuple[int, int, int]] = []
    numbers: list[tuple[int, ...]] = []
    shared: dict[bytes, int] = {}
    sizes = zip(batch.offsets[:-1][rows], batch.prompt_lengths[rows], batch.response_lengths[rows], strict=True)
    for key, (first, prompt, response) in zip(keys, sizes, strict=True):
        if answers[key] == 1 or not prompt:
            numbers.append((len(found),))
            found.append((first, prompt + response, 0))
            continue
        if key not in shared:
            shared[key] = len(found)
            found.append((first, prompt, 0))
        if response:
            numbers.append((shared[key], len(found)))
            found.append((first + prompt, response, prompt))
        else:
            numbers.append((shared[key],))
    sources, lengths, positions = np.array(found, np.int64).T
    return _Pieces(sources, lengths, positions, numbers)


def _ragged_cost(batch: TokenBatch, rows: np.ndarray, start: int) -> float:
    """Count a ragged pass's work in tokens: distinct tokens, attention, copies of padded rows, and starts."""
    lengths = batch.lengths[rows]
    prompts = dict(zip(_prompt_keys(batch, rows), batch.prompt_lengths[rows].tolist(), strict=True))
    distinct = sum(prompts.values()) + int(batch.response_lengths[rows].sum())
    groups = _groups(lengths, start)
    attention = ATTENTION_SHARE * _padded(lengths, groups)
    return distinct + attention + start * (1 + GROUP_START_SHARE * (len(groups) - 1))


def _groups(lengths: np.ndarray, start: int) -> list[Int64[np.ndarray, " group_rows"]]:
    """Group rows that attend in one call each, so that it costs least."""
    return passes_by_length(lengths, GROUP_START_SHARE * start / ATTENTION_SHARE)


def _padded(lengths: np.ndarray, parts: list[np.ndarray]) -> int:
    return sum(len(part) * int(lengths[part].max()) for part in parts)


def _prompt_keys(batch: TokenBatch, rows: np.ndarray) -> list[bytes]:
    """Return keys that are equal for equal prompts."""
    starts = batch.offsets[:-1][rows]
    ends = starts + batch.prompt_lengths[rows]
    return [batch.ids[start:end].tobytes() for start, end in zip(starts, ends, strict=True)]

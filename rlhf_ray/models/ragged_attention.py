"""Attention among the rows of a batch whose other work is done on one long row, without padding or repetition.

All layers but attention treat each token by itself. So the tokens of a batch lie end to end in one row, a prompt that
several rows share only once. Within attention alone they are put together to rows, padded to the longest of a group,
and taken apart again: on CPU that costs less than a mask over the long row, which grows with its square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.facts import facts_of

IMPLEMENTATION = "sdpa_of_ragged_rows"
"""Name in Transformers' tables of attention and of masks; without ragged rows it does what `sdpa` does."""
MODEL_TYPES = frozenset({"gemma", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3"})
"""Architectures that hand what they are called with on to their attention, and count positions by `position_ids`."""


@dataclass(frozen=True, slots=True)
class AttentionGroup:
    """Rows that attend in one call."""

    rows: tuple[tuple[int, ...], ...]
    """Numbers of the pieces of each row, in their order."""
    longest: int
    """Tokens to which the rows are padded, on the right, where causal attention never looks."""


@dataclass(frozen=True, slots=True)
class RaggedRows:
    """Map of which tokens of a long row belong together."""

    lengths: tuple[int, ...]
    """Tokens of each piece, in the order in which the pieces lie in the long row."""
    groups: tuple[AttentionGroup, ...]
    """All rows; each piece is in at least one of them, and one in several stands at the beginning of each."""


def model_takes_ragged_rows(model: ModelConfig) -> bool:
    """Tell whether a model's network will take ragged rows; False too where there is none: its ranks say so."""
    try:
        config = facts_of(model.path, model.trust_remote_code).config
    except (OSError, ValueError, KeyError):
        return False
    return takes_ragged_rows(config, model.attention)


def takes_ragged_rows(config: Any, attention: str) -> bool:
    """Tell whether a network of this configuration computes the same with ragged rows as with padded ones."""
    every = getattr(config, "layer_types", None) or ()
    return (
        config.model_type in MODEL_TYPES
        and attention in ("sdpa", IMPLEMENTATION)
        # A window looks back so many places of the long row, not of its own.
        and not getattr(config, "sliding_window", None)
        and all(kind == "full_attention" for kind in every)
    )


def prepare(network: Any) -> bool:
    """Let a Hugging Face network take ragged rows, if it can; returns whether it can."""
    if not takes_ragged_rows(network.config, network.config._attn_implementation):
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, _attention)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
    network.set_attn_implementation(IMPLEMENTATION)
    return True


def arguments(ragged: RaggedRows | None, device: torch.device) -> dict[str, Any]:
    """Return the arguments with which a prepared network is called so that its attention gets `ragged`."""
    if ragged is None:
        return {}
    # A mask that was made already is handed on as it is, so none is made; one without places fits no other attention.
    return {"ragged": ragged, "attention_mask": torch.empty(1, 1, 0, 0, device=device)}


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    ragged: RaggedRows | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute scaled dot-product attention, `[rows, heads, length, width]` in,
    `[rows, length, heads, width]` out.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if ragged is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    states = [state[0].transpose(0, 1).split(ragged.lengths) for state in (query, key, value)]
    outputs: dict[int, Tensor] = {}
    for group in ragged.groups:
        queries, keys, values = (_put_together(state, group) for state in states)
        output, _ = sdpa_attention_forward(module, queries, keys, values, None, **options)
        for number, piece in _taken_apart(output, group, ragged.lengths):
            # What a shared piece sees does not depend on the row that it begins.
            outputs.setdefault(number, piece)
    return torch.cat([outputs[number] for number in range(len(ragged.lengths))])[None], None


def _put_together(pieces: Sequence[Tensor], group: AttentionGroup) -> Tensor:
    """Put pieces `[tokens, heads, width]` together as rows `[rows, heads, longest, width]`."""
    padding = pieces[0].new_zeros(group.longest, *pieces[0].shape[1:])
    parts = []
    for row in group.rows:
        parts += [pieces[number] for number in row]
        missing = group.longest - sum(len(pieces[number]) for number in row)
        if missing:
            parts.append(padding[:missing])
    return torch.cat(parts).unflatten(0, (len(group.rows), group.longest)).transpose(1, 2)


def _taken_apart(output: Tensor, group: AttentionGroup, lengths: Sequence[int]) -> list[tuple[int, Tensor]]:
    """Take rows `[rows, longest, heads, width]` apart into pieces with their numbers."""
    sizes: list[int] = []
    for row in group.rows:
        own = [lengths[number] for number in row]
        sizes += [*own, group.longest - sum(own)]
    parts = iter(output.flatten(0, 1).split(sizes))
    found = []
    for row in group.rows:
        found += [(number, next(parts)) for number in row]
        next(parts)
    return found

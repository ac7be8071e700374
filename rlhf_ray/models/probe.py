"""Whether a network answers a few tokens, read in each way that a run will read them, as it answers them alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int32
from torch import Tensor

PROMPT, RESPONSES = 3, (6, 2)
"""Tokens of the probe: two answers to one prompt, so that a row is padded, lies behind another, or shares its start."""
BETWEEN_LAYOUTS = 8.0
"""Units in the last place of the largest logit that the same text may differ by in two layouts. Two attention kernels
of one library differ in bfloat16 by 1.1 to 1.4 of them (0.024 at logits up to 2.8, 0.131 at 14, 0.255 at 23)."""
BETWEEN_PASSES = 0.25
"""The same, in the mean, in two passes over one layout: there the same kernels compute the same shapes, and only where
a GPU adds up in changing order, as for a mixture of experts, anything may differ."""
LEAST = 1e-4
"""Difference in nats that is let pass whatever the logits: float32 sums in another order."""


class Unfaithful(ValueError):
    """A network does not compute here what it computes in Transformers; says what differs."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Answers to the probe's texts, in one layout."""

    layout: str
    """In words that complete `read ...`."""
    answers: Float[Tensor, " answers"]
    """In evaluation mode."""
    training: Sequence[Float[Tensor, " answers"]] = ()
    """In training mode, one pass after the other; empty for a network that is not trained."""


def probe_texts(config: Any) -> tuple[Int32[np.ndarray, " tokens"], list[Int32[np.ndarray, " tokens"]]]:
    """Return the token ids of a prompt, and of answers to it, that every network can read."""
    section = config.get_text_config()
    # Special tokens are the first or the last of a vocabulary; padding, for one, is not read by some networks.
    usable = np.setdiff1d(np.arange(min(section.vocab_size, 64)), [section.pad_token_id or 0])
    ids = np.resize(usable[len(usable) // 2 :], PROMPT + sum(RESPONSES)).astype(np.int32)
    prompt, *answers = np.split(ids, np.cumsum([PROMPT, *RESPONSES])[:-1])
    return prompt, answers


def scores_alone(
    network: Any, texts: Sequence[Int[Tensor, " tokens"]], pools: bool
) -> tuple[Float[Tensor, " texts"], float]:
    """Return the score that Transformers' own forward pass gives to each text; and the largest of any of their tokens.

    Args:
        network: a `ScalarNetwork`, or what is around it.
        texts: on its device.
        pools: whether it has a scalar for a text alone, and none at each token.
    """
    scores = torch.cat([network(ids[None]) for ids in texts])
    every = scores if pools else torch.cat([network(ids[None], None, torch.arange(len(ids)).to(ids)) for ids in texts])
    return scores, float(every.abs().max())


def check_readings(alone: Float[Tensor, " answers"], readings: Sequence[Reading], largest: float, dtype: str) -> None:
    """Compare answers with those that Transformers' own forward pass gives to each text alone.

    Args:
        alone: log-probabilities of tokens, or scores of texts.
        readings: the same, as a run computes them.
        largest: of the network's logits or scores, in size; rounding errors grow with it.
        dtype: that the network computes in.

    Raises:
        Unfaithful: they differ by more than rounding.
    """
    unit = torch.finfo(getattr(torch, dtype)).eps * max(largest, 1.0)
    for reading in readings:
        apart = float((reading.answers - alone).abs().max())
        if not apart <= max(LEAST, BETWEEN_LAYOUTS * unit):
            raise Unfaithful(f"read {reading.layout}, it answers otherwise than alone (by up to {apart:.2g})")
        for answers in reading.training:
            moved = float((answers - reading.answers).abs().mean())
            if not moved <= max(LEAST, BETWEEN_PASSES * unit):
                raise Unfaithful(f"it answers otherwise while it trains (by {moved:.2g} in the mean), or at random")

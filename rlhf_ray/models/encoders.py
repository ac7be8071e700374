"""Encoders as reward models: bidirectional networks whose own head pools a text into one score."""

from typing import Any

from jaxtyping import Int
from torch import Tensor, arange

ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "camembert",
        "deberta-v2",
        "distilbert",
        "electra",
        "modernbert",
        "roberta",
        "xlm-roberta",
    }
)
"""Model types whose classifier reads the attention mask and nothing else to tell padding from text."""


def is_encoder(config: Any) -> bool:
    """Whether the network of a Transformers configuration is an encoder that is supported here."""
    return config.model_type in ENCODERS


def attention_mask(input_ids: Int[Tensor, "rows length"], last: Int[Tensor, " rows"]) -> Int[Tensor, "rows length"]:
    """1 for each row's tokens up to its last one, 0 for the padding behind it.

    Args:
        input_ids: padded on the right.
        last: place of each row's last token in the flattened input.
    """
    rows, length = input_ids.shape
    ends = last - arange(rows, device=last.device) * length
    return (arange(length, device=last.device)[None] <= ends[:, None]).long()

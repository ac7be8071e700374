"""How many tokens a network can read: told by its weights where each position has its own."""

from collections.abc import Mapping
from typing import Any

from rlhf_ray.config.errors import BadInput

NAMES = ("pos", "wpe")
"""Parts of the names of tables of positions, learned or computed once."""
MORE = 4
"""Rows that such a table may have beyond the longest text, for what some architectures count before the first token."""


def longest_text(network: Any) -> int | None:
    """Return the most tokens that a network can read, past which it fails; None where it computes any position.

    Args:
        network: of Transformers; its outline, without weights, will do.
    """
    longest = described_positions(network.config)
    if longest is None:
        return None
    for name, module in network.named_modules():
        for own, table in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            # Tables that grow are no limit.
            named = any(part in f"{name}.{own}" for part in NAMES) and not hasattr(module, "make_weights")
            if named and table.dim() > 1 and longest <= table.shape[0] <= longest + MORE:
                # Where padding has a position, counting begins behind it.
                padding = getattr(module, "padding_idx", None)
                return min(longest, table.shape[0] - (0 if padding is None else padding + 1))
    return None


def described_positions(config: Any) -> int | None:
    """Return the longest text that a network was made for, as its configuration says; None where it says nothing."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_positions(path: str, network: Any, lengths: Mapping[str, int]) -> None:
    """Check that a network can read texts of these lengths.

    Args:
        path: of the model.
        network: its outline.
        lengths: most tokens of the texts that it reads, by the keys that say so.

    Raises:
        BadInput: names the key to lower.
    """
    longest = longest_text(network)
    for key, tokens in lengths.items():
        if longest is not None and tokens > longest:
            raise BadInput(
                f"{path}: has positions for {longest} tokens and fails on longer texts, but {key} is {tokens}; set "
                f"{key} to {longest} or less"
            )

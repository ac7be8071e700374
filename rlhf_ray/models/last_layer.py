"""The last layer of a decoder computed only where its output is read.

A reward model reads one token of each text, a policy those before its response's. Before them, the last layer's keys
and values are needed of all tokens, but its output projection and its feed-forward block only there: of a network of n
layers that spares up to about 0.7 / n of the work, forward and backward, and changes no number that is read.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn


class LastLayer:
    """Output projection and feed-forward block of a decoder's last layer, told which tokens are wanted."""

    def __init__(self, network: Any) -> None:
        """Take over the two modules of a Hugging Face network, if it has them under the names of Llama's family."""
        self._network = network
        self._positions: Tensor | None = None
        for module in _tokenwise(network):
            # The instance's own forward, so that modules, their hooks and the names of weights stay as they are.
            module.forward = self._selecting(module.forward)

    @contextmanager
    def reading(self, positions: Int[Tensor, " positions"] | None) -> Iterator[None]:
        """Compute within it no output but at these tokens of the flattened input; the rest may be anything.

        Args:
            positions: without repetition. None: all tokens.
        """
        # Activations are recomputed after this call, when it is no longer known what is read.
        self._positions = None if self._network.is_gradient_checkpointing else positions
        try:
            yield
        finally:
            self._positions = None

    def _selecting(self, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def selecting(hidden: Tensor) -> Tensor:
            positions = self._positions
            if positions is None:
                return forward(hidden)
            chosen = forward(hidden.flatten(0, 1).index_select(0, positions)[None])[0]
            rows, length = hidden.shape[:2]
            whole = chosen.new_zeros(rows * length, chosen.shape[-1])
            return whole.index_copy(0, positions, chosen).unflatten(0, (rows, length))

        return selecting


def _tokenwise(network: Any) -> list[nn.Module]:
    """Return the two modules, which treat each token by itself; none where the architecture is another."""
    layers = getattr(network.base_model, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    feed_forward: Any = getattr(layers[-1], "mlp", None)
    projection = getattr(getattr(layers[-1], "self_attn", None), "o_proj", None)
    # A mixture of experts has no down_proj of its own, and may answer with more than a tensor.
    if not isinstance(getattr(feed_forward, "down_proj", None), nn.Linear) or not isinstance(projection, nn.Linear):
        return []
    return [projection, feed_forward]

"""What a language model makes of the numbers of its output layer, measured on the network instead of read by name."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

TOKENS, OUTPUTS = 2, 64
"""Shape of the numbers that are put in the place of the output layer's."""
LARGEST = 50.0
"""Of them: past the logits of real models, so that a cap shows."""
PRECISION = 1e-6
"""Relative: some networks give logits in float32 whatever they compute in."""


class UnknownTransform(ValueError):
    """Logits are not a function of the output layer's numbers that is known here; says what they are."""


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """Numbers z of an output layer become cap x tanh(scale x z / cap); scale x z without a cap."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, numbers: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the logits, in the memory of the numbers."""
        if self.scale != 1.0:
            numbers.mul_(self.scale)
        return numbers if self.cap is None else numbers.div_(self.cap).tanh_().mul_(self.cap)

    def slope(self, logits: Float[Tensor, "..."]) -> Float[Tensor, "..."] | float:
        """Return the derivative of logits with respect to the output layer's numbers, from the logits."""
        return self.scale if self.cap is None else (logits / self.cap).square_().neg_().add_(1).mul_(self.scale)


IDENTITY = LogitTransform()


def measure_transform(network: Any) -> LogitTransform:
    """Find what a causal language model does to the numbers of its output layer before it returns them as logits.

    Its layers are not computed: given numbers stand for what they would answer. So a network on torch's meta device,
    without weights, will do, and the size of the model does not matter.

    Raises:
        UnknownTransform: something else than a scale and a cap; or the output layer reads other numbers than those of
            the last layer.
    """
    # Dense near 0, where no cap shows, and up to large numbers.
    numbers = torch.linspace(-1, 1, TOKENS * OUTPUTS, dtype=torch.float64).pow(5).mul(LARGEST)
    width = network.get_output_embeddings().weight.shape[1]
    # Whole numbers, which no type of a network rounds.
    hidden = torch.arange(TOKENS * width, dtype=torch.float64).remainder(7).reshape(1, TOKENS, width)
    if network.base_model is network:
        raise UnknownTransform("its layers cannot be called apart from its output layer")
    with _stand_ins(network, hidden, numbers.reshape(1, TOKENS, OUTPUTS)) as read:
        try:
            logits = network(input_ids=torch.ones(1, TOKENS, dtype=torch.long), use_cache=False).logits
        except Exception as error:
            # A network's own code may raise anything.
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise UnknownTransform(f"what lies between its last layer and its logits is not known ({why})") from error
    if logits.is_meta or logits.numel() != numbers.numel():
        raise UnknownTransform("its logits are not those of its output layer")
    transform = _fitted(numbers, logits.detach().double().flatten())
    before = _scale_before(hidden, read)
    if before != 1.0 and network.get_output_embeddings().bias is not None:
        raise UnknownTransform("its output layer has a bias, and reads what its last layer gives times a number")
    return replace(transform, scale=transform.scale * before)


def _scale_before(hidden: Tensor, read: list[Tensor]) -> float:
    """Measure by what the last layer's numbers are multiplied before the output layer reads them.

    Raises:
        UnknownTransform: something else is done to them.
    """
    if len(read) == 1 and read[0].shape == hidden.shape and not read[0].is_meta:
        found = read[0].double()
        scale = float(found.sum() / hidden.sum())
        if torch.allclose(found, hidden * scale, rtol=PRECISION, atol=0):
            return 1.0 if abs(scale - 1) < PRECISION else scale
    raise UnknownTransform("its output layer does not read what its last layer gives")


@contextmanager
def _stand_ins(network: Any, hidden: Tensor, numbers: Tensor) -> Iterator[list[Tensor]]:
    """Let layers answer with `hidden`, the output layer with `numbers`; yields what the output layer was given."""
    read: list[Tensor] = []

    def answer(given: Tensor) -> Tensor:
        read.append(given)
        return numbers.clone()

    def layers(*_: Any, **__: Any) -> Any:
        return _Answer(last_hidden_state=hidden.clone())  # type: ignore[arg-type]

    # Some networks call the decoder within their base model.
    bodies = {network.base_model, network.get_decoder()} - {network, None}
    stands: dict[nn.Module, Any] = dict.fromkeys(bodies, layers) | {network.get_output_embeddings(): answer}
    kept = {module: vars(module).get("forward") for module in stands}
    for module, forward in stands.items():
        module.forward = forward
    try:
        yield read
    finally:
        for module, forward in kept.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward


class _Answer(BaseModelOutputWithPast):
    """Answer of a network's layers; what else some of them answer, such as their images, is None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def _fitted(given: Float[Tensor, " numbers"], found: Float[Tensor, " numbers"]) -> LogitTransform:
    """Find the transform of which these are the values.

    Raises:
        UnknownTransform: there is none.
    """
    nearest, largest = given.abs().argmin(), given.argmax()
    scale = float(found[nearest] / given[nearest])
    if abs(scale - 1) < PRECISION:
        scale = 1.0
    found_largest = float(found[largest])
    candidates = [LogitTransform(scale)]
    if 0 < found_largest < scale * LARGEST:
        candidates.append(LogitTransform(scale, _cap(scale * LARGEST, found_largest)))
    for transform in candidates:
        if torch.allclose(transform(given.clone()), found, rtol=PRECISION, atol=PRECISION):
            return transform
    raise UnknownTransform(
        f"it makes {found_largest:.6g} of {LARGEST:g} in its output layer, in a way that is neither a scale nor a cap"
    )


def _cap(scaled: float, capped: float) -> float:
    """Find the cap at which `scaled` becomes `capped`; by halving, for what a number becomes grows with its cap."""
    low, high = capped, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        made = middle * float(torch.tensor(scaled / middle, dtype=torch.float64).tanh())
        low, high = (middle, high) if made < capped else (low, middle)
    return high

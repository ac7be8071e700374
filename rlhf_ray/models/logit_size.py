"""How large a language model's logits are, measured beside a forward pass: rounding errors follow their size."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_ray.models.logprobs import chunk_tokens

if TYPE_CHECKING:
    from rlhf_ray.models.heads import LogprobHead


@dataclass(slots=True)
class LogitSize:
    """Size of the logits of some tokens, before any temperature."""

    largest: float = 0.0
    """Largest absolute value."""
    usual: float = 0.0
    """Square root of the mean square."""


@contextmanager
def measured_logits(head: "LogprobHead") -> Iterator[LogitSize]:
    """Measure the logits of all that the head computes within the block; the result stands when it ends.

    They are computed once more, before the head's own forward pass, when also a sharded weight is there.
    """
    size, squares, count = LogitSize(), 0.0, 0

    @torch.no_grad()
    def measure(_: Any, arguments: tuple[Tensor, ...]) -> None:
        nonlocal squares, count
        hidden = arguments[0].detach().flatten(0, -2)
        for part in hidden.split(chunk_tokens(head.weight.shape[0], hidden.device)):
            logits = head.transform(torch.nn.functional.linear(part, head.weight, head.bias).float())
            size.largest = max(size.largest, float(logits.abs().max()))
            squares += float(logits.square().mean()) * len(part)
            count += len(part)

    hook = head.register_forward_pre_hook(measure)
    try:
        yield size
    finally:
        hook.remove()
        size.usual = (squares / max(1, count)) ** 0.5

"""Sums over the micro-batches of a step."""

from collections.abc import Mapping

import torch
from torch import Tensor


def zero_loss(outputs: Mapping[str, Tensor]) -> Tensor:
    """Zero, but the backward pass runs."""
    return torch.stack([output.sum() for output in outputs.values()]).sum() * 0.0


def accumulate(totals: dict[str, Tensor], metrics: Mapping[str, Tensor], counts: bool) -> None:
    """Add a micro-batch's metrics to `totals`; one that only fills up a rank adds zeros."""
    for name, value in metrics.items():
        added = value.detach() if counts else torch.zeros_like(value)
        totals[name] = totals[name] + added if name in totals else added

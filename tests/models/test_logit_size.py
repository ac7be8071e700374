"""Sizes of logits, measured beside a forward pass."""

import torch
from torch import nn

from rlhf_ray.models.heads import LogprobHead
from rlhf_ray.models.logit_size import measured_logits
from rlhf_ray.models.logit_transform import LogitTransform


def test_sizes_are_those_of_all_logits_of_the_block():
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(8, 50)
    head = LogprobHead(layer, LogitTransform(scale=3.0, cap=5.0))
    hidden = torch.randn(20, 8, generator=generator)
    targets = torch.randint(50, (20,), generator=generator)
    with torch.no_grad(), measured_logits(head) as size:
        for part in (slice(0, 7), slice(7, 20)):
            head(hidden[part], targets[part])
        logits = 5.0 * torch.tanh(3.0 * layer(hidden) / 5.0)
    torch.testing.assert_close(size.largest, float(logits.abs().max()))
    torch.testing.assert_close(size.usual, float(logits.square().mean().sqrt()))
    head(hidden, targets)
    torch.testing.assert_close(size.largest, float(logits.abs().max()), msg="nothing is measured after the block")

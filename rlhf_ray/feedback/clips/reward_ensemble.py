"""Several small networks that predict the reward of a step; where they disagree, people are asked."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

HIDDEN = 64
LEAK = 0.01
"""Two hidden layers of 64 units, leaky by 0.01 (Christiano et al. 2017, section A.1)."""


class RewardEnsemble(nn.Module):
    """Members side by side in one batched network, so that all are fitted by one pass.

    Args:
        members: networks; their initial weights differ.
        inputs: numbers that describe a step: observation and action, brought to a scale of about 1.
        seed: of the initial weights.
    """

    mean: Tensor
    """Of each member's predictions on what was judged: its zero means nothing."""
    std: Tensor

    def __init__(self, members: int, inputs: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 1)]
        self.weights = nn.ParameterList(
            torch.empty(members, before, after).uniform_(-1, 1, generator=generator) / math.sqrt(before)
            for before, after in sizes
        )
        self.biases = nn.ParameterList(torch.zeros(members, 1, after) for _, after in sizes)
        self.register_buffer("mean", torch.zeros(members))
        self.register_buffer("std", torch.ones(members))

    @property
    def members(self) -> int:
        """Number of networks."""
        return len(self.mean)

    def forward(self, inputs: Float[Tensor, "rows inputs"]) -> Float[Tensor, "members rows"]:
        """Each member's own prediction, neither shifted nor scaled."""
        hidden = inputs.expand(self.members, *inputs.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < len(self.weights) - 1:
                hidden = F.leaky_relu(hidden, LEAK)
        return hidden.squeeze(2)

    def sums(self, clips: Float[Tensor, "clips frames inputs"]) -> Float[Tensor, "members clips"]:
        """Each member's sum of predictions over each clip."""
        count, frames, size = clips.shape
        return self(clips.reshape(count * frames, size)).view(self.members, count, frames).sum(2)

    def standardise(self, inputs: Float[Tensor, "rows inputs"]) -> None:
        """Take the zero and the unit of each member from its predictions of some steps."""
        with torch.no_grad():
            predicted = self(inputs)
            self.mean.copy_(predicted.mean(1))
            self.std.copy_(predicted.std(1, correction=0).clamp(min=1e-6))

    @torch.no_grad()
    def reward(self, inputs: Float[Tensor, "rows inputs"]) -> Float[Tensor, " rows"]:
        """Mean over members, each of mean 0 and deviation 1 by itself (section 2.2.3)."""
        return ((self(inputs) - self.mean[:, None]) / self.std[:, None]).mean(0)

    def squares(self) -> Float[Tensor, " members"]:
        """Sum of the squares of each member's weights, for L2."""
        return torch.stack([weight.square().sum((1, 2)) for weight in self.weights]).sum(0)

"""The optimizer steps of one batch: which rows each learns from, and the weight of each token in it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Int64

from rlhf_ray.algorithms.aggregation import Aggregation, token_weights
from rlhf_ray.experience.costs import COST_CRITIC_ROLE
from rlhf_ray.experience.experience import Experience

# What both trained roles report under the same name; the losses themselves have names of their own.
SHARED_NAMES = ("grad_norm", "learning_rate")
# Not a sum over the policy's tokens.
MEANS_ALREADY = (*SHARED_NAMES, "loss/ptx_avg")

TokenColumns = dict[str, Float32[np.ndarray, " tokens"]]


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    rows: Int64[np.ndarray, " minibatch"]
    total_weight: float
    """Of the policy's tokens; its metrics are divided by it."""


@dataclass(frozen=True)
class Epoch:
    """One pass over the batch, each row once."""

    steps: Sequence[Step]
    columns: TokenColumns
    """The policy's columns of the experience, and `weight` by the aggregation of its loss."""
    critic_columns: Mapping[str, TokenColumns]
    """Each critic's, by its role, and `weight`, the same for all tokens of a step, which sums to 1 in it."""


def draw_epochs(
    experience: Experience,
    epochs: int,
    minibatches: int,
    seed: Sequence[int],
    aggregation: Aggregation = "token_mean",
    longest: int | None = None,
) -> Iterator[Epoch]:
    """Shuffle the rows (or groups that stay together) anew for each pass and deal them out to the optimizer steps.

    A step whose rows have nothing to learn from (all their rewards failed) is left out: an optimizer would still move
    by its momentum.

    Args:
        experience: the batch.
        epochs: passes.
        minibatches: optimizer steps of a pass.
        seed: numbers that identify the batch, so that a resumed run draws the same.
        aggregation: how the policy's losses of tokens become one.
        longest: tokens that a response may have, by which `sequence_mean_token_sum_norm` divides.
    """
    random = np.random.default_rng(list(seed))
    offsets = torch.from_numpy(experience.batch.response_offsets)
    for _ in range(epochs):
        weight, critic_weight = torch.zeros(len(experience.learned)), torch.zeros(len(experience.learned))
        steps = []
        for rows in _deal(experience, minibatches, random):
            index = torch.from_numpy(experience.batch.flat_index(rows))
            chosen = torch.zeros_like(experience.learned)
            chosen[index] = experience.learned[index]
            if not bool(chosen.any()):
                continue
            mine = token_weights(aggregation, chosen, offsets, longest)
            weight += mine
            critic_weight += mine if aggregation == "token_mean" else token_weights("token_mean", chosen, offsets)
            total = 1.0 if aggregation in ("token_mean", "sequence_mean_token_mean") else float(mine.sum())
            steps.append(Step(np.sort(rows), total))
        yield Epoch(
            steps,
            _weighed(experience.columns, weight),
            {role: _weighed(columns, critic_weight) for role, columns in experience.critic_columns.items()},
        )


def _weighed(columns: Mapping[str, torch.Tensor], weight: torch.Tensor) -> TokenColumns:
    return {name: column.float().numpy() for name, column in columns.items()} | {"weight": weight.numpy()}


def _deal(experience: Experience, minibatches: int, random: np.random.Generator) -> list[np.ndarray]:
    """Deal rows to optimizer steps."""
    if experience.groups is None:
        return np.array_split(random.permutation(experience.batch.rows), minibatches)
    dealt = np.array_split(random.permutation(np.unique(experience.groups)), minibatches)
    return [np.flatnonzero(np.isin(experience.groups, groups)) for groups in dealt]


@dataclass
class StepMetrics:
    """Means of the optimizer steps' metrics."""

    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)

    def add(self, role: str, metrics: Mapping[str, float], total_weight: float = 1.0) -> None:
        """Count one step of a role; names that roles share get the role appended, those of the cost critic `cost_`.

        Metrics of a loss are weighted sums over tokens: divided by the total weight they are means.
        """
        for name, value in metrics.items():
            if name == "loss":
                continue
            room, _, rest = name.partition("/")
            own = f"{room}/cost_{rest}" if role == COST_CRITIC_ROLE else name
            full = f"{name}/{role}" if name in SHARED_NAMES else own
            mean = value if name in MEANS_ALREADY else value / total_weight
            self._sums[full] = self._sums.get(full, 0.0) + mean
            self._counts[full] = self._counts.get(full, 0) + 1

    def means(self) -> dict[str, float]:
        """Return the mean of each metric over the optimizer steps added so far."""
        return {name: total / self._counts[name] for name, total in self._sums.items()}

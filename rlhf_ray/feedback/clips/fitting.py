"""Fits an ensemble of reward predictors to choices between clips, while more come in, and chooses what to ask next."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_ray.algorithms.clip_preferences import ClipPreferenceLoss, adapted_l2, choice_variance
from rlhf_ray.feedback.clips.clips import Clips, Comparisons

HIDDEN = 64
LEAK = 0.01
"""Two hidden layers of 64 units, leaky by 0.01 (Christiano et al. 2017, section A.1)."""
SMALLEST_L2, LARGEST_L2 = 1e-7, 1e-2
"""Between these the coefficient is adapted; it moves by a fifth, once for each fit."""
FIRST_L2 = 1e-5
CANDIDATES = 10
"""Pairs that are looked at for each one that is asked."""


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
        """Return each member's own prediction, neither shifted nor scaled."""
        hidden = inputs.expand(self.members, *inputs.shape)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < len(self.weights) - 1:
                hidden = F.leaky_relu(hidden, LEAK)
        return hidden.squeeze(2)

    def sums(self, clips: Float[Tensor, "clips frames inputs"]) -> Float[Tensor, "members clips"]:
        """Sum each member's predictions over each clip."""
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
        """Return the mean over members, each of mean 0 and deviation 1 by itself (section 2.2.3)."""
        return ((self(inputs) - self.mean[:, None]) / self.std[:, None]).mean(0)

    def squares(self) -> Float[Tensor, " members"]:
        """Sum the squares of each member's weights, for L2."""
        return torch.stack([weight.square().sum((1, 2)) for weight in self.weights]).sum(0)


@dataclass(frozen=True)
class FitSettings:
    """Settings by which the members learn."""

    learning_rate: float = 1e-3
    batch: int = 64
    """Comparisons of one optimizer step."""
    error_floor: float = 0.1


class EnsembleFitter:
    """An ensemble with its optimizer; comparisons are given anew at each fit, so that corrected ones are forgotten."""

    def __init__(self, ensemble: RewardEnsemble, settings: FitSettings, seed: int) -> None:
        self.ensemble = ensemble
        self.l2 = torch.full((ensemble.members,), FIRST_L2)
        self.optimizer = torch.optim.Adam(ensemble.parameters(), settings.learning_rate, foreach=True)
        self._settings = settings
        self._loss = ClipPreferenceLoss(settings.error_floor)
        self._seed = seed

    def fit(self, comparisons: Comparisons, steps: int, turn: int) -> dict[str, float]:
        """Make optimizer steps on all comparisons; adapt the L2 coefficients; take zero and unit of the predictions.

        Each member learns from a bootstrap of its own: a comparison counts Poisson(1) times, as it would among draws
        with replacement, and those that count 0 times, one in e, are its validation set. How often one counts is
        decided by its number, so that it stays so while others come in.

        Args:
            comparisons: at least one.
            steps: optimizer steps.
            turn: number of this fit, by which batches are drawn.
        """
        left, right = (torch.from_numpy(clips.inputs) for clips in (comparisons.left, comparisons.right))
        share = torch.tensor(comparisons.left_share)
        counts = torch.from_numpy(self._counts(comparisons))
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + turn)
        for _ in range(steps):
            chosen = torch.randint(
                len(comparisons), (min(self._settings.batch, len(comparisons)),), generator=generator
            )
            self._step(left[chosen], right[chosen], share[chosen], counts[:, chosen])
        measured = self._measure(left, right, share, counts)
        self.ensemble.standardise(torch.cat([left, right]).flatten(0, 1))
        return measured

    def _step(self, left: Tensor, right: Tensor, share: Tensor, counts: Float[Tensor, "members pairs"]) -> None:
        sums = self.ensemble.sums(torch.cat([left, right]))
        outputs = {"left": sums[:, : len(share)].flatten(), "right": sums[:, len(share) :].flatten()}
        columns = {"weight": counts.flatten() / len(share), "left_share": share.repeat(self.ensemble.members)}
        # A loss is a sum, and members share no weights: one call serves them all.
        loss, _ = self._loss(outputs, columns)
        loss = loss + (self.l2 * self.ensemble.squares()).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def _losses(self, left: Tensor, right: Tensor, share: Tensor, weight: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the weighted loss and the accuracy of each member."""
        sums = self.ensemble.sums(torch.cat([left, right]))
        found = []
        for member in range(self.ensemble.members):
            outputs = {"left": sums[member, : len(share)], "right": sums[member, len(share) :]}
            loss, metrics = self._loss(outputs, {"weight": weight[member], "left_share": share})
            found.append((loss, metrics["accuracy"]))
        return found

    @torch.no_grad()
    def _measure(self, left: Tensor, right: Tensor, share: Tensor, counts: Tensor) -> dict[str, float]:
        """Compute losses on what each member learned from and on what it did not see; L2 follows their ratio."""
        sides = []
        for weight in (counts, (counts == 0).float()):
            weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
            sides.append(
                [torch.stack(column) for column in zip(*self._losses(left, right, share, weight), strict=True)]
            )
        (training, _), (validation, accuracy) = sides
        # Where there are few comparisons, a member may have learned from all of them, or from none.
        learned, held_out = (counts > 0).any(1), (counts == 0).any(1)
        adapted = adapted_l2(self.l2, training, validation).clamp(SMALLEST_L2, LARGEST_L2)
        self.l2 = torch.where(learned & held_out, adapted, self.l2)
        return {
            "loss": float(training[learned].mean()),
            "eval_loss": float(validation[held_out].mean()),
            "eval_accuracy": float(accuracy[held_out].mean()),
            "predictor/l2": float(self.l2.mean()),
        }

    def _counts(self, comparisons: Comparisons) -> np.ndarray:
        """Count how often each comparison counts for each member [members, pairs]."""
        drawn = [
            np.random.default_rng([self._seed, int(number)]).poisson(1.0, self.ensemble.members)
            for number in comparisons.numbers
        ]
        return np.stack(drawn, axis=1).astype(np.float32)


def choose_pairs(
    clips: Clips, count: int, ensemble: RewardEnsemble | None, error_floor: float, seed: list[int]
) -> list[tuple[int, int]]:
    """Choose pairs of different clips to be compared, as places in `clips`; fewer where there are not as many.

    Args:
        clips: to choose from, at least two.
        count: how many pairs.
        ensemble: whose disagreement decides (Christiano et al. 2017, section 2.2.4); None: random pairs.
        error_floor: of the ensemble's loss.
        seed: of the candidates.
    """
    dice = np.random.default_rng(seed)
    wanted = count if ensemble is None else count * CANDIDATES
    first = dice.integers(len(clips), size=2 * wanted)
    second = (first + dice.integers(1, len(clips), size=2 * wanted)) % len(clips)
    # Sides as they were drawn; the same two clips are not asked twice at once.
    pairs = list({frozenset(pair): pair for pair in zip(first.tolist(), second.tolist(), strict=True)}.values())
    pairs = pairs[:wanted]
    if ensemble is None or len(pairs) <= count:
        return pairs[:count]
    with torch.no_grad():
        sums = ensemble.sums(torch.from_numpy(clips.inputs))
    left, right = (sums[:, [pair[side] for pair in pairs]] for side in (0, 1))
    order = choice_variance(left - right, error_floor).argsort(descending=True, stable=True)
    return [pairs[place] for place in order[:count].tolist()]

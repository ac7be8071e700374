"""The role that learns the reward: an ensemble, fitted to all comparisons that there are, again and again."""

from dataclasses import dataclass

import torch

from examples.online_preferences.saving import Saved, Tensors, give_moments, moments, named, under
from examples.online_preferences.tasks import TASKS
from rlhf_ray.feedback.clips.clips import Comparisons
from rlhf_ray.feedback.clips.fitting import EnsembleFitter, FitSettings, RewardEnsemble

FIRST_FIT = 8
"""The first fit makes so many times the steps of a later one: it begins from nothing."""


@dataclass(frozen=True)
class Fitted:
    """The predictors as they are now."""

    ensemble: RewardEnsemble
    metrics: dict[str, float]


class PredictingRole(Saved):
    """One ensemble of reward predictors.

    Args:
        task: name of the task.
        seed: of initial weights and batches.
        members: networks.
        steps: optimizer steps of a fit.
    """

    def __init__(self, task: str, seed: int, members: int, steps: int) -> None:
        known = TASKS[task]
        self._fitter = EnsembleFitter(
            RewardEnsemble(members, len(known.scale) + known.actions, seed), FitSettings(), seed
        )
        self._steps = steps

    def fit(self, comparisons: Comparisons, number: int) -> Fitted:
        """Learn from all comparisons so far. `number` is that of the round, 0 before the first."""
        steps = self._steps if number else self._steps * FIRST_FIT
        metrics = self._fitter.fit(comparisons, steps, number)
        return Fitted(self._fitter.ensemble, metrics)

    def current(self) -> Fitted:
        """Return the predictors as the last fit left them."""
        return Fitted(self._fitter.ensemble, {})

    def state(self) -> dict[str, torch.Tensor]:
        """See `Saved`."""
        ensemble, optimizer = self._fitter.ensemble.state_dict(), moments(self._fitter.optimizer)
        return named("ensemble", ensemble) | named("optimizer", optimizer) | {"l2": self._fitter.l2}

    def load(self, tensors: Tensors) -> None:
        """See `Saved`."""
        self._fitter.ensemble.load_state_dict(under("ensemble", tensors))
        give_moments(self._fitter.optimizer, under("optimizer", tensors))
        self._fitter.l2 = tensors["l2"].clone()

"""What each optimizer step of `rlhf dpo` gives its loss: columns of pairs, or of single answers with labels."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32

from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.algorithms.segments import row_index
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.loading import Loaded
from rlhf_ray.jobs.supervised.loop import SupervisedTask, TrainingBatch
from rlhf_ray.jobs.supervised.reference import Model, ReferenceLogprobs
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup
from rlhf_ray.tracking.tracker import Tracker

Row = TypeVar("Row")
ReferenceOf = Callable[[TrainerGroup, Callable[[str], None]], ReferenceLogprobs]
"""Makes the reference from the policy as it was loaded; takes words for the person who watches too."""


class PreferenceTask(SupervisedTask[Row]):
    """Batches, columns and metrics of one kind of preferences, for training rows and for rows kept aside."""

    kind = "policy"
    needs_reference: bool
    reference_of: ReferenceOf | None = None

    def __init__(self, train: Loaded[Row], held_out: Loaded[Row] | None, rows_per_step: int) -> None:
        """Take the rows of both data sets, and how many of them make an optimizer step."""
        super().__init__(train, held_out)
        self._rows_per_step = rows_per_step
        self._policy: Model | None = None
        self._moments = RunningMoments()

    def begin(self, trainer: TrainerGroup, tracker: Tracker) -> None:
        """Read the log-probabilities of all rows under the reference, where the loss has one."""

        def policy(batch: TokenBatch) -> np.ndarray:
            return trainer.logprobs(SharedBatch.put(batch))["logprobs"]

        asked = self.reference_of if self.needs_reference else None
        tracker.progress(0, "score")
        self.start_from(policy, asked(trainer, tracker.message) if asked is not None else None)

    def start_from(self, policy: Model, reference: ReferenceLogprobs | None) -> None:
        """Give the policy, for first passes over a step, and get the reference's log-probabilities of all rows.

        Args:
            policy: as it is whenever it is called.
            reference: None if the loss has none.
        """
        self._policy = policy
        if reference is not None:
            self._read_reference(self.train.rows, reference, training=True)
            if self.held_out is not None:
                self._read_reference(self.held_out.rows, reference, training=False)

    def batch(self, rows: Sequence[Row]) -> TrainingBatch:
        """Make one optimizer step of some training rows."""
        return self._batch(rows, training=True)

    def evaluate(self, trainer: TrainerGroup, rows: Sequence[Row]) -> dict[str, float]:
        """Return loss and metrics of rows kept aside, as the mean of steps of the training's size."""
        totals: dict[str, float] = {}
        for start in range(0, len(rows), self._rows_per_step):
            part = rows[start : start + self._rows_per_step]
            for name, value in self._evaluate(part).items():
                totals[name] = totals.get(name, 0.0) + value * len(part) / len(rows)
        return self.report(totals)

    def state(self) -> dict[str, Any]:
        """Return the running mean of rewards, for a checkpoint."""
        return asdict(self._moments)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's running mean."""
        self._moments = RunningMoments(**state)

    @abstractmethod
    def _read_reference(self, rows: Sequence[Row], reference: ReferenceLogprobs, training: bool) -> None:
        """Keep the reference's log-probabilities of a data set."""

    @abstractmethod
    def _batch(self, rows: Sequence[Row], training: bool) -> TrainingBatch:
        """Batch and columns of some rows of a data set."""

    def _evaluate(self, rows: Sequence[Row]) -> dict[str, float]:
        batch = self._batch(rows, training=False)
        columns = {name: torch.from_numpy(values) for name, values in {**batch.columns, **batch.row_columns}.items()}
        columns["rows"] = row_index(torch.from_numpy(batch.tokens.response_offsets))
        logprobs = torch.from_numpy(self._logprobs(batch.tokens))
        value, metrics = self.loss({"logprobs": logprobs}, columns)
        return {"loss": float(value), **{name: float(metric) for name, metric in metrics.items()}}

    def _logprobs(self, batch: TokenBatch) -> Float32[np.ndarray, " response_tokens"]:
        """The policy's log-probabilities as it now is."""
        if self._policy is None:
            raise RuntimeError("preferences: call start_from first")
        return self._policy(batch)

    def _shift(self, rewards: torch.Tensor, training: bool) -> float:
        """Mean of all rewards seen in training, these included if they belong to it (BCO, Jung et al. 2024)."""
        if training:
            self._moments = self._moments.update(rewards)
        return self._moments.mean


def column(value: float, rows: int) -> Float32[np.ndarray, " rows"]:
    """The same value for each row."""
    return np.full(rows, value, np.float32)

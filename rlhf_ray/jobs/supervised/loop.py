"""The loop of jobs that learn from a fixed data set; sft, reward and dpo each fill in a `SupervisedTask`."""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import numpy as np

from rlhf_ray.algorithms.losses import Loss
from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints
from rlhf_ray.checkpoint.storage import join
from rlhf_ray.cluster.connect import connect
from rlhf_ray.cluster.errors import RoleDied
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.jobs.supervised import SupervisedConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.cursor import Cursor, Passes
from rlhf_ray.data.loading import Loaded
from rlhf_ray.roles.trainer import Kind, SharedBatch, TrainerGroup
from rlhf_ray.runs.folder import RunFolder, finished_before, tracked_run
from rlhf_ray.runs.recovery import RESTARTS, run_through_deaths
from rlhf_ray.runs.saving import Saves, restore_newest
from rlhf_ray.runs.stopping import StopRequest, stop_on_signals
from rlhf_ray.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

Example = TypeVar("Example")


class NothingLearned(RlhfError):
    """The first step has no gradient, so that no other step would have one."""


@dataclass(frozen=True)
class TrainingBatch:
    """One optimizer step's rows, with the columns that the loss reads."""

    tokens: TokenBatch
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Of tokens, in flat order."""
    row_columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    groups: np.ndarray | None = None
    """Rows with the same number stay in one micro-batch."""


class SupervisedTask(ABC, Generic[Example]):
    """Base of jobs that learn from a fixed data set: kind of model, loss, rows and what they become."""

    kind: Kind
    loss: Loss

    def __init__(self, train: Loaded[Example], held_out: Loaded[Example] | None) -> None:
        """Take the rows to learn from, and those kept aside."""
        self.train, self.held_out = train, held_out

    def begin(self, trainer: TrainerGroup, tracker: Tracker) -> None:
        """Read what must be known of the model as it was loaded, before the first step or a resume."""

    @abstractmethod
    def batch(self, rows: Sequence[Example]) -> TrainingBatch:
        """Make one optimizer step of some rows."""

    def report(self, sums: dict[str, float]) -> dict[str, float]:
        """Turn the sums that the loss returned into metrics."""
        return sums

    @abstractmethod
    def evaluate(self, trainer: TrainerGroup, rows: Sequence[Example]) -> dict[str, float]:
        """Return metrics of rows kept aside, without the prefix `eval_`."""

    def state(self) -> dict[str, Any] | None:
        """Return what the task keeps from step to step, as JSON can hold it, for a checkpoint; None: nothing."""
        return None

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""

    def finish(self, trainer: TrainerGroup, folder: RunFolder) -> None:
        """Do what belongs beside the finished model."""


def learned_before(config: SupervisedConfig) -> bool:
    """Tell, and say, whether an earlier start came to the end; asked before data and model are read.

    Raises:
        BadInput: the folder holds a run with other settings.
    """
    return finished_before(config, deciding=("epochs", "batch_size"))


def learn(config: SupervisedConfig, task: SupervisedTask[Example]) -> bool:
    """Run a supervised job to its end, or until it is asked to stop; begin, or resume from the newest checkpoint.

    Returns:
        Whether it came to its end.
    """
    checkpoints = Checkpoints(str(RunFolder.of(config).checkpoints), config.checkpoint.keep)
    saved = checkpoints.latest()
    passes = Passes(len(task.train.rows), config.epochs, config.batch_size)
    with tracked_run(config, saved, total_steps=passes.steps) as (folder, tracker), ExitStack() as stack:
        for loaded in (task.train, task.held_out):
            for line in loaded.report.lines() if loaded else ():
                tracker.message(line)
        tracker.message("starting Ray and the trainer")
        cluster = stack.enter_context(connect(config.cluster, config.groups, tracker.message, config.environment))
        trainer = TrainerGroup(
            cluster,
            "trainer",
            task.kind,
            config.model,
            config.trainer,
            tokens_per_microbatch=config.tokens_per_microbatch,
            total_steps=passes.steps,
            seed=config.seed,
            max_restarts=RESTARTS,
        )
        trainer.ready()
        # After Ray, which sets handlers of its own; and until now there was nothing to save.
        stop = stack.enter_context(stop_on_signals())
        begun: list[dict[str, Any] | None] = []

        def begin() -> _Job[Example]:
            """Begin at the newest checkpoint, or at the start."""
            if not begun:
                task.begin(trainer, tracker)
                begun.append(task.state())
            job = _Job(config, task, trainer, tracker, checkpoints, passes)
            restore_newest(checkpoints, lambda checkpoint: job.restore(checkpoint, begun[0]))
            return job

        def make_steps(job: _Job[Example]) -> _Job[Example]:
            if job.run(stop).finished:
                trainer.export(str(folder.final))
                task.finish(trainer, folder)
            return job

        def recover(_: _Job[Example] | None, death: RoleDied) -> _Job[Example]:
            logger.warning("%s; starting it again", death)
            trainer.restart(death.rank or 0)
            job = begin()
            tracker.message(f"{death.role} runs again; going on from step {job.done}")
            return job

        job = run_through_deaths(begin, make_steps, recover, [trainer.name], lambda: tracker.last_step)
        finished = f"finished: the model is in {folder.final}"
        tracker.message(finished if job.finished else folder.stopped(job.done, passes.steps))
    return job.finished


class _Job(Generic[Example]):
    """State of a supervised run between its steps."""

    def __init__(
        self,
        config: SupervisedConfig,
        task: SupervisedTask[Example],
        trainer: TrainerGroup,
        tracker: Tracker,
        checkpoints: Checkpoints,
        passes: Passes,
    ) -> None:
        self._config, self._task, self._trainer = config, task, trainer
        self._tracker, self._saves, self._passes = tracker, Saves(checkpoints, config.checkpoint.in_background), passes
        ids = [str(row) for row in range(passes.rows)]
        self._cursor = Cursor(ids, config.seed, config.data.shuffle, task.train.fingerprint)  # type: ignore[attr-defined]
        self.done = 0

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done == self._passes.steps

    def run(self, stop: StopRequest) -> Self:
        """Take the steps that are left, until the last checkpoint is whole."""
        every = self._config.checkpoint.every_steps
        saved = self.done
        with self._saves.finished():
            while not self.finished and not stop:
                self._step()
                self._saves.look()
                if every and self.done % every == 0:
                    self._save()
                    saved = self.done
            if saved < self.done:
                self._save()
        return self

    def _step(self) -> None:
        started = time.perf_counter()
        self._tracker.progress(self.done, "train")
        ids = self._cursor.take(self._passes.rows_of(self.done))
        batch = self._task.batch([self._task.train.rows[int(row)] for row in ids])
        metrics = self._trainer.train_step(
            SharedBatch.put(batch.tokens), self._task.loss, batch.columns, batch.row_columns, groups=batch.groups
        )
        if self.done == 0 and metrics["grad_norm"] == 0:
            raise NothingLearned(
                "the gradient of the first step is zero, so nothing would be learned: either no parameter is trained, "
                "or each row of the step says nothing (both answers of a pair the same, for instance)"
            )
        metrics = self._task.report(metrics)
        self._cursor.finish(ids)
        self.done += 1
        seconds = time.perf_counter() - started
        tokens = float(batch.tokens.lengths.sum())
        rates = {"tokens_per_second": tokens / seconds, "step_time": seconds, "epoch": self._cursor.epoch}
        if self._evaluation_due():
            self._tracker.progress(self.done, "evaluate")
            assert self._task.held_out is not None
            found = self._task.evaluate(self._trainer, self._task.held_out.rows)
            metrics |= {f"eval_{name}": value for name, value in found.items()}
        self._tracker.log(self.done, metrics | rates)

    def _evaluation_due(self) -> bool:
        every = self._config.evaluate_every_steps
        return self._task.held_out is not None and (self.finished or (every > 0 and self.done % every == 0))

    def _save(self) -> None:
        self._tracker.progress(self.done, "checkpoint")
        directory = self._saves.begin(self.done)
        self._saves.copy(self._trainer, join(directory, "trainer"))
        state: dict[str, Any] = {
            "step": self.done,
            "cursor": self._cursor.state(),
            "tracker_run": self._tracker.run_id,
        }
        kept = self._task.state()
        if kept is not None:
            state["memory"] = kept
        self._saves.follow(self.done, {"trainer": self._trainer}, {}, state)

    def restore(self, checkpoint: Checkpoint | None, begun: dict[str, Any] | None) -> None:
        """Continue from a checkpoint; None: begin with a fresh trainer, and with `begun` as the task's state."""
        if checkpoint is None:
            if begun is not None:
                self._task.load(begun)
            self._tracker.truncate_after(-1)
            return
        self._trainer.load(checkpoint.role("trainer"), checkpoint.manifest.parts["trainer"])
        self._cursor.load(checkpoint.state["cursor"])
        if "memory" in checkpoint.state:
            self._task.load(checkpoint.state["memory"])
        self.done = checkpoint.state["step"]
        self._tracker.resume_after(self.done, checkpoint.directory)

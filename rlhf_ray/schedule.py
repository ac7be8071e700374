"""The one loop of policy-gradient jobs, and the admission rule.

Nothing here calls Ray or a model: the loop calls a job's driver, and what a test sees is the order of its acts.

With `max_staleness` 0 each batch is written by the weights that learn from it, and engines and trainers take turns.
With k, the next k batches are written while the policy learns: batch s begins at version max(0, s - k) and is learned
from at version s, in order, so that nothing is older than k versions, thrown away, or learned from twice.
"""

import logging
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

from rlhf_ray.cluster.errors import RoleDied, RoleLost
from rlhf_ray.config import placement
from rlhf_ray.experience.experience import Experience
from rlhf_ray.rollout.interfaces import Group, Groups
from rlhf_ray.tracking.timings import Timings

GENERATE, SCORE, TRAIN, SYNC = placement.GENERATE, placement.SCORE, placement.TRAIN, placement.SYNC
EVALUATE, CHECKPOINT = "evaluate", "checkpoint"


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Schedule:
    """Course of a run: its length, its batches, and when evaluation and checkpoints are due."""

    steps: int
    prompts_per_step: int
    max_staleness: int = 0
    """Versions by which a sample may be older than the policy that learns from it."""
    ends_requests: bool = False
    """Whether the batches under way are written to their end before weights change; else engines go on with them."""
    exact: bool = False
    """Whether a run that was asked to leave ends them too, so that a resume goes on bit for bit."""
    evaluate_every: int | None = None
    """Steps between evaluations; also before the first and after the last step. 0: only then. None: no evaluation."""
    checkpoint_every: int = 0
    """Steps between checkpoints; also after the last step. 0: only then."""

    def evaluation_due(self, done: int) -> bool:
        """Tell whether to evaluate when `done` steps are done."""
        if self.evaluate_every is None:
            return False
        return done in (0, self.steps) or (self.evaluate_every > 0 and done % self.evaluate_every == 0)

    def checkpoint_due(self, done: int) -> bool:
        """Tell whether to save when `done` steps are done."""
        return done == self.steps or (self.checkpoint_every > 0 and done % self.checkpoint_every == 0)


class Admission:
    """Bounds staleness by not starting early, so that nothing is thrown away for being old (AReaL, 2025).

    Rollouts may start while accepted + running < (max_staleness + version + 1) x batch. All counts are of prompts, over
    the whole run; `version` is the number of batches that the policy has learned from, and each needs `batch` of them.
    """

    def __init__(self, batch: int, max_staleness: int, accepted: int = 0) -> None:
        self._batch = batch
        self._max_staleness = max_staleness
        self.accepted = accepted
        self.running = 0

    def room(self, version: int) -> int:
        """Count the prompts that may start now."""
        return max(0, (self._max_staleness + version + 1) * self._batch - self.accepted - self.running)

    def start(self, prompts: int, version: int) -> None:
        """Count prompts that start; raises ValueError where there is no room for them."""
        if prompts > self.room(version):
            raise ValueError(f"{prompts} prompts start where there is room for {self.room(version)}")
        self.running += prompts

    def accept(self, prompts: int) -> None:
        """Count prompts of a batch that have ended; raises ValueError where fewer run."""
        if prompts > self.running:
            raise ValueError(f"{prompts} prompts end where {self.running} run")
        self.running -= prompts
        self.accepted += prompts


@dataclass
class RunProgress:
    """Steps that are done, saved and evaluated."""

    done: int = 0
    """Steps that the policy has learned from."""
    saved: int = 0
    """Steps of them that the newest checkpoint holds."""
    evaluated: bool = False
    """Whether the policy was evaluated after the last of them; the run may have been asked to leave before."""


class Driver(Protocol):
    """Hooks of a job in each phase. Steps are counted from 0: step s learns from weights of version s.

    Where roles share devices, each act gives them to those that it needs.

    Nothing that a checkpoint holds may change before `update`, except that prompts are handed out; those that were, and
    were not learned from, are part of a checkpoint and are handed out again first. So a run may leave between any two
    phases, and the resumed run does the unfinished step again.
    """

    def sync(self, version: int) -> Mapping[str, float]:
        """Give the policy's weights to the engines as `version`, and verify them there; returns metrics."""
        ...

    def rollout(self, step: int, prompts: int) -> Groups:
        """Send the next `prompts` prompts to the engines, at once; returns the groups to come."""
        ...

    def score(self, step: int, group: Group, *, early: bool = False) -> None:
        """Start rewards and forward passes of a group, without waiting for them.

        `early`: the policy learns from an earlier batch yet. Then what learns must not read the group before a group of
        its batch comes that is not early, or its experience is made: it would read half-updated weights.
        """
        ...

    def make_experience(self, step: int) -> Experience:
        """Wait for the scores of all groups, then make rewards, advantages and returns of the batch."""
        ...

    def update(self, step: int, experience: Experience) -> Mapping[str, float]:
        """Take the optimizer steps on a batch; returns metrics."""
        ...

    def evaluate(self, done: int) -> None:
        """Answer and score the same prompts after `done` steps."""
        ...

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Record what step number `done` gave and where its time went."""
        ...

    def checkpoint(self, done: int, *, evaluated: bool) -> None:
        """Save the state after `done` steps, and whether the policy was evaluated since the last of them."""
        ...


class Stop(Protocol):
    """Becomes true when the run is asked to leave."""

    def __bool__(self) -> bool: ...


@dataclass
class _UnderWay:
    """A batch that engines write."""

    step: int
    groups: Groups
    taken: int = 0
    """Groups of it that have come."""


POLL_SECONDS = 0.02
"""Between two looks for groups that came while the policy learns; rewards take much longer."""


class Loop:
    """The steps of a run. Weight version v is the policy after v steps.

    Args:
        driver: what each phase does. While it is in `update`, `score` is called early, from another thread.
        schedule: how many steps, and what is due when.
        progress: how far an earlier part of the run came; the loop counts on in it.
        stop: looked at between phases and as groups come; once true, the run saves what is done and leaves.
        timings: where time goes; a driver may open parts of it, such as IDLE for its own arithmetic.
    """

    def __init__(
        self,
        driver: Driver,
        schedule: Schedule,
        progress: RunProgress | None = None,
        *,
        stop: Stop = False,
        timings: Timings | None = None,
    ) -> None:
        self.driver = driver
        self.progress = progress or RunProgress()
        self._schedule = schedule
        self._stop = stop
        self._timings = timings or Timings()
        done = self.progress.done
        self._admission = Admission(schedule.prompts_per_step, schedule.max_staleness, done * schedule.prompts_per_step)
        self._under_way: deque[_UnderWay] = deque()
        self._started = done
        self._learning = False
        """Whether the policy is between the weights of two steps."""
        self._unlogged: dict[str, float] | None = None
        """What the newest step gave, until it is logged."""
        self.rescued = False
        """Whether steps were saved, or begun to be, because an error ended the run."""

    def again(self) -> "Loop":
        """Return a loop that goes on from where this one is, in a step that broke off before anything was learned."""
        return Loop(self.driver, self._schedule, self.progress, stop=self._stop)

    def run(self) -> int:
        """Make the steps that are left; returns how many are done. Ends what still runs when an act fails."""
        progress, steps = self.progress, self._schedule.steps
        evaluation_missing = self._schedule.evaluation_due(progress.done) and not progress.evaluated
        if progress.done == progress.saved == steps and not evaluation_missing:
            return progress.done
        try:
            self._sync()
            if evaluation_missing and not self._stop:
                self._evaluate_if_due()
            self._timings.take()  # what came before the first step belongs to none
            while progress.done < steps and not self._stop:
                self._step()
            if self._schedule.max_staleness:
                self._take_what_came()  # while it can be had: the last checkpoint holds it
        except Exception as error:
            self._save_what_was_learned(error)
            raise
        finally:
            for batch in self._under_way:
                batch.groups.close()
        if progress.saved < progress.done:
            self._checkpoint()
        return progress.done

    def _save_what_was_learned(self, error: Exception) -> None:
        """Save the steps that no checkpoint holds before an error, such as that of a sync, ends the run.

        Not where a model died: what it had learned is gone, and the others go back to its checkpoint.
        """
        died = isinstance(error, RoleDied) and not isinstance(error, RoleLost)
        if died or self._learning or self.progress.saved == self.progress.done:
            return
        try:
            if self._unlogged is not None:
                self.driver.log(self.progress.done, self._unlogged, self._timings.take())
            self._checkpoint()
            self.rescued = True
        except Exception as failure:
            logger.warning("the steps after %d could not be saved: %s", self.progress.saved, failure)

    def _step(self) -> None:
        step = self.progress.done
        with self._timings.part(GENERATE):
            self._collect(step)
        if self._stop:
            return
        with self._timings.part(SCORE):
            experience = self.driver.make_experience(step)
        if self._stop:
            return
        self._learning = True
        with self._timings.part(TRAIN):
            self._unlogged = metrics = self._update(step, experience)
        self._learning = False
        self.progress.done, self.progress.evaluated = step + 1, False
        if self._schedule.ends_requests and (self._schedule.exact or not self._stop):
            self._end_requests()
        if not self._stop:
            metrics |= self._sync()
            self._evaluate_if_due()
        self._unlogged = None
        self.driver.log(self.progress.done, metrics, self._timings.take())
        if self._schedule.checkpoint_due(self.progress.done):
            self._take_what_came()
            self._checkpoint()

    def _collect(self, step: int) -> None:
        """Start what may start, and take the oldest batch to its end, scoring its groups as they come."""
        size = self._schedule.prompts_per_step
        while self._started < self._schedule.steps and self._admission.room(version=step) >= size:
            self._admission.start(size, version=step)
            self._under_way.append(_UnderWay(self._started, self.driver.rollout(self._started, size)))
            self._started += 1
        batch = self._under_way[0]
        for group in batch.groups:
            self._take(batch, group)
            if self._stop:
                return
        # A prompt without a group had its place in this batch all the same; nothing starts early to replace it.
        self._admission.accept(size - batch.taken)
        self._under_way.popleft()

    def _take(self, batch: _UnderWay, group: Group, *, early: bool = False) -> None:
        self.driver.score(batch.step, group, early=early)
        self._admission.accept(1)
        batch.taken += 1

    def _take_what_came(self) -> None:
        """Take the groups of the next batches that have come, without waiting."""
        for batch in self._under_way:
            while (group := batch.groups.poll()) is not None:
                self._take(batch, group, early=True)

    def _end_requests(self) -> None:
        """Wait for the groups of all batches that are under way."""
        with self._timings.part(GENERATE):
            for batch in self._under_way:
                for group in batch.groups:
                    self._take(batch, group, early=True)

    def _update(self, step: int, experience: Experience) -> dict[str, float]:
        """Let the policy learn; meanwhile take the groups of the next batches as they come."""
        if not self._under_way:
            return dict(self.driver.update(step, experience))
        # Leaving the block waits for the policy, also after an error: nothing may happen beside its optimizer steps.
        with ThreadPoolExecutor(1, "update") as thread:
            update = thread.submit(self.driver.update, step, experience)
            while not update.done():
                self._take_what_came()
                wait([update], timeout=POLL_SECONDS)
        return dict(update.result())

    def _sync(self) -> Mapping[str, float]:
        with self._timings.part(SYNC):
            return self.driver.sync(version=self.progress.done)

    def _evaluate_if_due(self) -> None:
        if self._schedule.evaluation_due(self.progress.done):
            with self._timings.part(EVALUATE):
                self.driver.evaluate(self.progress.done)
            self.progress.evaluated = True

    def _checkpoint(self) -> None:
        with self._timings.part(CHECKPOINT):
            self.driver.checkpoint(self.progress.done, evaluated=self.progress.evaluated)
        self.progress.saved = self.progress.done

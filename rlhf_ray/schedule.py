"""The one loop of policy-gradient jobs, the admission rule, and whose turn it is on shared devices.

Nothing here knows Ray, models or data: the loop calls a job's acts, and what a test sees is their order.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from rlhf_ray.config.errors import BadInput

Clock = Callable[[], float]
Group = TypeVar("Group")
GroupOut = TypeVar("GroupOut", covariant=True)
Experience = TypeVar("Experience")

GENERATE, SCORE, TRAIN, SYNC = "generate", "score", "train", "sync"
EVALUATE, CHECKPOINT = "evaluate", "checkpoint"
IDLE = "idle"
"""The rest of a step: the driver works, and no role does."""


@dataclass(frozen=True)
class Schedule:
    """How a run goes: its length, its batches, and when evaluation and checkpoints are due."""

    steps: int
    prompts_per_step: int
    max_staleness: int = 0
    """Versions by which a sample may be older than the policy that learns from it."""
    evaluate_every: int | None = None
    """Steps between evaluations; also before the first and after the last step. None: no evaluation."""
    checkpoint_every: int = 0
    """Steps between checkpoints; also after the last step. 0: only then."""

    def __post_init__(self) -> None:
        if self.max_staleness != 0:
            raise BadInput(
                f"algorithm.max_staleness: {self.max_staleness} asks for training on samples of older weights, "
                "which this version does not do; the only value is 0"
            )

    def evaluation_due(self, done: int) -> bool:
        """Whether to evaluate when `done` steps are done."""
        return self.evaluate_every is not None and (done in (0, self.steps) or done % self.evaluate_every == 0)

    def checkpoint_due(self, done: int) -> bool:
        """Whether to save when `done` steps are done."""
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
        """Prompts that may start now."""
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


class Timings:
    """Where a step's time goes. Within a part another may begin: then the outer one stands still."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._open = [IDLE]
        self._since = clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time within counts for `name`."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call, the rest as `idle`, and the sum of all as `step`."""
        self._switch()
        taken = {name: self._seconds.get(name, 0.0) for name in (GENERATE, SCORE, TRAIN, SYNC, IDLE)} | self._seconds
        self._seconds = {}
        return taken | {"step": sum(taken.values())}

    def _switch(self) -> None:
        now = self._clock()
        current = self._open[-1]
        self._seconds[current] = self._seconds.get(current, 0.0) + now - self._since
        self._since = now


class Sleeper(Protocol):
    """A role that can give its devices away for a while."""

    def wake(self) -> None:
        """Take the devices again."""
        ...

    def sleep(self) -> None:
        """Free the devices."""
        ...


@dataclass
class DeviceTurns:
    """Whose turn it is where roles share devices: for a phase, those it does not use sleep, then those it uses wake.

    Without roles nothing is shared and nothing happens.
    """

    roles: Mapping[str, Sleeper] = field(default_factory=dict)
    """Roles that share devices, in the order in which they wake."""
    uses: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Roles that each phase needs."""
    asleep: set[str] = field(default_factory=set)
    """Roles that have given their devices away; at first none has, unless said."""
    _phase: str | None = None

    def begin(self, phase: str) -> None:
        """Let the roles of `phase` have the devices."""
        self._phase = phase
        for name, role in self.roles.items():
            if name not in self.uses[phase] and name not in self.asleep:
                role.sleep()
                self.asleep.add(name)
        for name, role in self.roles.items():
            if name in self.uses[phase] and name in self.asleep:
                role.wake()
                self.asleep.remove(name)

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Let the roles of `phase` have the devices for a while, within another phase."""
        before = self._phase
        self.begin(phase)
        yield
        if before is not None:  # not after an error, which may come from a role that died
            self.begin(before)

    def clear_for(self, started: Collection[str]) -> None:
        """Let all roles sleep but those that are about to start anew, which wake up by that."""
        for name, role in self.roles.items():
            if name not in started and name not in self.asleep:
                role.sleep()
                self.asleep.add(name)
        self.asleep -= set(started)

    def hand_over(self, groups: Iterable[Group], phase: str) -> Iterator[Group]:
        """Pass groups on to `phase`: each as it comes, or, where devices are shared, all once the last has come."""
        if not self.roles:
            yield from groups
            return
        finished = list(groups)
        self.begin(phase)
        yield from finished


class Groups(Protocol[GroupOut]):
    """Groups of a batch as they finish, from a rollout that already runs."""

    def __iter__(self) -> Iterator[GroupOut]: ...

    def close(self) -> None:
        """End what still runs."""
        ...


class Acts(Protocol[Group, Experience]):
    """What a job does in each phase.

    Nothing that a checkpoint holds may change before `update`, except that prompts are handed out; those that were, and
    were not learned from, are part of a checkpoint and are handed out again first. So a run may leave between any two
    phases, and the resumed run does the unfinished step again.
    """

    def sync(self, version: int) -> Mapping[str, float]:
        """Give the policy's weights to the engines as `version`, and verify them there; returns metrics."""
        ...

    def rollout(self, step: int, prompts: int) -> Groups[Group]:
        """Send the next `prompts` prompts to the engines, at once; returns the groups to come."""
        ...

    def score(self, group: Group) -> None:
        """Start rewards and forward passes of a group, without waiting for them."""
        ...

    def evaluate_experience(self, groups: list[Group]) -> Experience:
        """Wait for the scores, then make rewards, advantages and returns of the batch."""
        ...

    def update(self, experience: Experience) -> Mapping[str, float]:
        """Take the optimizer steps on a batch; returns metrics."""
        ...

    def evaluate(self, done: int) -> None:
        """Answer and score held-out prompts after `done` steps, in the turns of GENERATE and SCORE."""
        ...

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        """Record what step number `done` gave and where its time went."""
        ...

    def checkpoint(self, done: int) -> None:
        """Save the state after `done` steps."""
        ...


class Stop(Protocol):
    """Becomes true when the run is asked to leave."""

    def __bool__(self) -> bool: ...


class Loop(Generic[Group, Experience]):
    """The steps of a run. Weight version v is the policy after v steps.

    Args:
        acts: what each phase does.
        schedule: how many steps, and what is due when.
        done: steps that an earlier part of the run has made.
        saved: steps of them that the newest checkpoint holds; all, unless said.
        evaluated: whether that part also evaluated after them: it may have been asked to leave before.
        stop: looked at between phases and as groups come; once true, the run saves what is done and leaves.
        turns: the roles that share devices.
        timings: where time goes; acts may open parts of it, such as IDLE for their own arithmetic.
    """

    def __init__(
        self,
        acts: Acts[Group, Experience],
        schedule: Schedule,
        *,
        done: int = 0,
        saved: int | None = None,
        evaluated: bool = False,
        stop: Stop = False,
        turns: DeviceTurns | None = None,
        timings: Timings | None = None,
    ) -> None:
        self.done = done
        self._acts = acts
        self._schedule = schedule
        self._evaluated = evaluated
        self._stop = stop
        self._turns = turns or DeviceTurns()
        self._timings = timings or Timings()
        self._admission = Admission(schedule.prompts_per_step, schedule.max_staleness, done * schedule.prompts_per_step)
        self._rollouts: deque[Groups[Group]] = deque()
        self._started = done
        self._saved = done if saved is None else saved

    def run(self) -> int:
        """Make the steps that are left; returns how many are done. Ends what still runs when an act fails."""
        evaluation_missing = self._schedule.evaluation_due(self.done) and not self._evaluated
        if self.done == self._saved == self._schedule.steps and not evaluation_missing:
            return self.done
        try:
            self._sync()
            if evaluation_missing and not self._stop:
                self._evaluate_if_due()
            while self.done < self._schedule.steps and not self._stop:
                self._step()
        finally:
            for groups in self._rollouts:
                groups.close()
        if self._saved < self.done:
            self._checkpoint()
        return self.done

    def _step(self) -> None:
        with self._phase(GENERATE):
            groups = self._collect()
        if self._stop:
            return
        with self._phase(SCORE):
            experience = self._acts.evaluate_experience(groups)
        if self._stop:
            return
        with self._phase(TRAIN):
            metrics = dict(self._acts.update(experience))
        self.done += 1
        if not self._stop:
            metrics |= self._sync()
            self._evaluate_if_due()
        self._acts.log(self.done, metrics, self._timings.take())
        if self._schedule.checkpoint_due(self.done):
            self._checkpoint()

    def _collect(self) -> list[Group]:
        """Start what may start, and take the oldest batch, scoring its groups as they come."""
        batch = self._schedule.prompts_per_step
        while self._started < self._schedule.steps and self._admission.room(version=self.done) >= batch:
            self._admission.start(batch, version=self.done)
            self._rollouts.append(self._acts.rollout(self._started, batch))
            self._started += 1
        groups = []
        for group in self._turns.hand_over(self._rollouts[0], SCORE):
            self._acts.score(group)
            self._admission.accept(1)
            groups.append(group)
            if self._stop:
                return groups
        # A prompt without a group had its place in this batch all the same; nothing starts early to replace it.
        self._admission.accept(batch - len(groups))
        self._rollouts.popleft()
        return groups

    def _sync(self) -> Mapping[str, float]:
        with self._phase(SYNC):
            return self._acts.sync(version=self.done)

    def _evaluate_if_due(self) -> None:
        if self._schedule.evaluation_due(self.done):
            with self._phase(EVALUATE, turn=GENERATE):
                self._acts.evaluate(self.done)

    def _checkpoint(self) -> None:
        with self._phase(CHECKPOINT, turn=TRAIN):
            self._acts.checkpoint(self.done)
        self._saved = self.done

    @contextmanager
    def _phase(self, name: str, turn: str | None = None) -> Iterator[None]:
        with self._timings.part(name):
            self._turns.begin(turn or name)
            yield

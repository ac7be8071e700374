"""The loop with staleness: the next batches are written while the policy learns, in order, each learned from once."""

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray import schedule as loop_of_jobs
from rlhf_ray.schedule import Loop, RunProgress, Schedule

PROMPTS = 3


@dataclass
class Batch:
    """A rollout whose groups come when `arrivals` says so: true comes at this look, false not yet."""

    step: int
    arrivals: Iterator[bool]
    waiting: list[str]
    closed: bool = False

    def __iter__(self) -> Iterator[str]:
        while self.waiting and not self.closed:
            yield self.waiting.pop(0)

    def poll(self) -> str | None:
        if self.waiting and not self.closed and next(self.arrivals, True):
            return self.waiting.pop(0)
        return None

    def close(self) -> None:
        self.closed = True


@dataclass
class OverlappingDriver:
    """Notes what happens; learns in a thread until the loop has looked for groups `looks` times."""

    staleness: int
    arrivals: Iterator[bool] = field(default_factory=lambda: iter(()))
    looks: int = 3
    version: int = -1
    learning: bool = False
    batches: list[Batch] = field(default_factory=list)
    started: dict[int, int] = field(default_factory=dict)
    scored: dict[int, list[str]] = field(default_factory=dict)
    early: list[str] = field(default_factory=list)
    learned: list[tuple[int, list[str]]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    fails_at: int | None = None
    _looked: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def sync(self, version: int) -> Mapping[str, float]:
        assert not self.learning
        self.version = version
        self.events.append(f"sync {version}")
        return {}

    def rollout(self, step: int, prompts: int) -> Batch:
        assert not self.learning, "engines must not come back, nor prompts be drawn, beside optimizer steps"
        self.started[step] = self.version
        batch = Batch(step, self._seen(), [f"{step}.{index}" for index in range(prompts)])
        self.batches.append(batch)
        return batch

    def _seen(self) -> Iterator[bool]:
        while True:
            self._looked.release()
            yield next(self.arrivals, True)

    def score(self, step: int, group: str, *, early: bool = False) -> None:
        self.events.append(f"{'early' if early else 'score'} {group}")
        if early:
            self.early.append(group)
        else:
            assert not self.learning, "what learns would read half-updated weights"
        self.scored.setdefault(step, []).append(group)

    def make_experience(self, step: int) -> Any:
        return self.scored.pop(step)

    def update(self, step: int, experience: Any) -> Mapping[str, float]:
        self.learning = True
        for _ in range(self.looks if any(batch.waiting for batch in self.batches if batch.step > step) else 0):
            self._looked.acquire(timeout=0.2)
        self.learning = False
        if step == self.fails_at:
            raise RuntimeError("the policy died")
        self.learned.append((step, experience))
        self.events.append(f"update {step}")
        return {}

    def evaluate(self, done: int) -> None:
        assert not self.learning

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        parts = sum(value for name, value in seconds.items() if name != "step")
        assert seconds["step"] == pytest.approx(parts)

    def checkpoint(self, done: int, *, evaluated: bool) -> None:
        self.saved.append(done)


@pytest.fixture(autouse=True)
def _poll_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_of_jobs, "POLL_SECONDS", 0.001)


def run(driver: OverlappingDriver, steps: int, done: int = 0, stop: Any = False, **how: bool) -> int:
    plan = Schedule(steps, PROMPTS, driver.staleness, **how)
    return Loop(driver, plan, RunProgress(done, done), stop=stop).run()


@settings(deadline=None, max_examples=40)
@given(
    staleness=st.integers(0, 3),
    steps=st.integers(1, 5),
    arrivals=st.lists(st.booleans(), max_size=60),
    looks=st.integers(0, 5),
    ends=st.booleans(),
)
def test_each_batch_is_learned_from_once_in_order_and_is_as_old_as_said(
    staleness: int, steps: int, arrivals: list[bool], looks: int, ends: bool
) -> None:
    driver = OverlappingDriver(staleness, iter(arrivals), looks)
    assert run(driver, steps, ends_requests=ends) == steps
    assert [step for step, _ in driver.learned] == list(range(steps))
    for step, groups in driver.learned:
        assert Counter(groups) == Counter(f"{step}.{index}" for index in range(PROMPTS))
    assert driver.started == {step: max(0, step - staleness) for step in range(steps)}
    assert staleness or not driver.early
    if ends:
        for version in range(1, steps):
            before = driver.events[: driver.events.index(f"sync {version}")]
            asked = [step for step, started in driver.started.items() if started < version]
            heard = {event.split()[1] for event in before if event.split()[0] in ("early", "score")}
            assert heard >= {f"{step}.{index}" for step in asked for index in range(PROMPTS)}


def test_what_comes_while_the_policy_learns_is_taken_then() -> None:
    driver = OverlappingDriver(1, looks=PROMPTS + 1)
    run(driver, 2)
    assert driver.events == [
        *["sync 0", "score 0.0", "score 0.1", "score 0.2"],
        *["early 1.0", "early 1.1", "early 1.2", "update 0", "sync 1", "update 1", "sync 2"],
    ]


class StopAfter:
    def __init__(self, driver: OverlappingDriver, events: int) -> None:
        self._driver, self._events = driver, events

    def __bool__(self) -> bool:
        return len(self._driver.events) >= self._events


@settings(deadline=None, max_examples=40)
@given(
    staleness=st.integers(0, 3),
    after=st.integers(0, 40),
    exact=st.booleans(),
    arrivals=st.lists(st.booleans(), max_size=40),
)
def test_stopped_anywhere_and_resumed_learns_each_batch_once(
    staleness: int, after: int, exact: bool, arrivals: list[bool]
) -> None:
    steps = 4
    first = OverlappingDriver(staleness, iter(arrivals))
    done = run(first, steps, stop=StopAfter(first, after), ends_requests=exact, exact=exact)
    assert first.saved[-1:] == ([done] if done else [])
    if exact and done < steps and first.scored:
        # What a version that is gone wrote had come to its end, so that a checkpoint has it.
        for step in range(done, min(done + staleness, steps)):
            if first.started.get(step, done) < done:
                assert sorted(first.scored.get(step, [])) == [f"{step}.{index}" for index in range(PROMPTS)]
    assert all(batch.closed for batch in first.batches if batch.waiting)
    second = OverlappingDriver(staleness)
    assert run(second, steps, done=done) == steps
    assert [step for step, _ in first.learned + second.learned] == list(range(steps))


def test_a_policy_that_dies_while_it_learns_ends_what_is_under_way() -> None:
    driver = OverlappingDriver(2, iter([False] * 100), fails_at=1)
    with pytest.raises(RuntimeError, match="the policy died"):
        run(driver, 5)
    assert [step for step, _ in driver.learned] == [0]
    assert all(batch.closed for batch in driver.batches if batch.waiting)
    assert not driver.saved

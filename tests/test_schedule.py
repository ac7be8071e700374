"""The loop's order, what it does when asked to stop, the admission rule, timings."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.cluster.errors import RoleDied, RoleFailed, RoleLost, RoleRaised
from rlhf_ray.schedule import (
    EVALUATE,
    GENERATE,
    SCORE,
    SYNC,
    TRAIN,
    Admission,
    Loop,
    RunProgress,
    Schedule,
)
from rlhf_ray.tracking.timings import IDLE, Timings


class FakeClock:
    """Moves only when somebody works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        self.now += seconds


class Asked:
    """A stop request that comes when the run has done something a given number of times."""

    def __init__(self, driver: "RecordingDriver", after: int | None) -> None:
        self._driver = driver
        self._after = after

    def __bool__(self) -> bool:
        return self._after is not None and len(self._driver.events) >= self._after


class Rollout:
    def __init__(self, driver: "RecordingDriver", step: int, prompts: int) -> None:
        self._driver, self._step, self._prompts = driver, step, prompts
        self.closed = False

    def __iter__(self) -> Iterator[Any]:
        for index in range(self._prompts):
            self._driver.did(f"group {self._step}.{index}", seconds=2)
            yield f"{self._step}.{index}"

    def poll(self) -> Any:
        return None

    def close(self) -> None:
        self.closed = True


class RecordingDriver:
    def __init__(self) -> None:
        self.events: list[str] = []
        self.clock = FakeClock()
        self.rollouts: list[Rollout] = []
        self.scored: list[str] = []
        self.logged: list[tuple[int, dict[str, float], dict[str, float]]] = []
        self.fails_at: str | None = None

    def did(self, event: str, seconds: float) -> None:
        self.clock.work(seconds)
        self.events.append(event)
        if event == self.fails_at:
            raise RuntimeError(event)

    def sync(self, version: int) -> Mapping[str, float]:
        self.did(f"sync {version}", seconds=5)
        return {"sync": float(version)}

    def rollout(self, step: int, prompts: int) -> Rollout:
        self.did(f"rollout {step}", seconds=1)
        self.rollouts.append(Rollout(self, step, prompts))
        return self.rollouts[-1]

    def score(self, step: int, group: Any, *, early: bool = False) -> None:
        self.scored.append(group)
        self.did(f"score {group}", seconds=0)

    def make_experience(self, step: int) -> Any:
        groups, self.scored = self.scored, []
        self.did(f"experience {','.join(groups)}", seconds=3)
        return groups

    def update(self, step: int, experience: Any) -> Mapping[str, float]:
        self.did(f"update {','.join(experience)}", seconds=7)
        return {"loss": 0.5}

    def evaluate(self, done: int) -> None:
        self.did(f"evaluate {done}", seconds=11)

    def log(self, done: int, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> None:
        self.logged.append((done, dict(metrics), dict(seconds)))
        self.did(f"log {done}", seconds=0.5)

    def checkpoint(self, done: int, *, evaluated: bool) -> None:
        self.did(f"checkpoint {done}", seconds=13)


def loop_of(
    driver: RecordingDriver,
    schedule: Schedule,
    *,
    done: int = 0,
    evaluated: bool = False,
    stop_after: int | None = None,
) -> Loop:
    stop = Asked(driver, stop_after)
    return Loop(driver, schedule, RunProgress(done, done, evaluated), stop=stop, timings=Timings(driver.clock))


STEP_0 = [
    "rollout 0",
    "group 0.0",
    "score 0.0",
    "group 0.1",
    "score 0.1",
    "experience 0.0,0.1",
    "update 0.0,0.1",
    "sync 1",
]


def test_a_run_syncs_first_and_each_batch_is_learned_before_the_next_starts() -> None:
    driver = RecordingDriver()
    schedule = Schedule(steps=2, prompts_per_step=2, evaluate_every=2, checkpoint_every=1)
    assert loop_of(driver, schedule).run() == 2
    step_1 = [event.replace("0.", "1.").replace("rollout 0", "rollout 1") for event in STEP_0[:-1]] + ["sync 2"]
    assert driver.events == [
        *["sync 0", "evaluate 0", *STEP_0, "log 1", "checkpoint 1"],
        *[*step_1, "evaluate 2", "log 2", "checkpoint 2"],
    ]
    assert driver.logged[0][1] == {"loss": 0.5, "sync": 1.0}


def test_a_resumed_run_continues_where_it_was_and_a_finished_one_does_nothing() -> None:
    driver = RecordingDriver()
    schedule = Schedule(steps=3, prompts_per_step=1, evaluate_every=3)
    assert loop_of(driver, schedule, done=2).run() == 3
    assert driver.events[:2] == ["sync 2", "rollout 2"]
    assert driver.events[-3:] == ["evaluate 3", "log 3", "checkpoint 3"]
    finished = RecordingDriver()
    assert loop_of(finished, schedule, done=3, evaluated=True).run() == 3
    assert finished.events == []


def test_a_run_may_evaluate_at_its_ends_alone() -> None:
    driver = RecordingDriver()
    loop_of(driver, Schedule(steps=4, prompts_per_step=1, evaluate_every=0)).run()
    assert [event for event in driver.events if event.startswith("evaluate")] == ["evaluate 0", "evaluate 4"]


@given(stop_after=st.integers(0, 40), every=st.integers(0, 3))
def test_stopped_anywhere_and_resumed_equals_not_stopped(stop_after: int, every: int) -> None:
    schedule = Schedule(steps=4, prompts_per_step=2, evaluate_every=2, checkpoint_every=every)
    whole, first, second = RecordingDriver(), RecordingDriver(), RecordingDriver()
    loop_of(whole, schedule).run()
    done = loop_of(first, schedule, stop_after=stop_after).run()
    saves = [event for event in first.events if event.startswith("checkpoint")]
    assert saves[-1:] == ([f"checkpoint {done}"] if done else [])
    assert len(set(saves)) == len(saves)
    evaluated = f"evaluate {done}" in first.events
    # Without a checkpoint the second attempt begins anew, and the first one's evaluation is dropped.
    assert loop_of(second, schedule, done=done, evaluated=evaluated and done > 0).run() == 4

    def learned(driver: RecordingDriver) -> list[str]:
        return [event for event in driver.events if event.startswith(("update", "log"))]

    assert learned(first) + learned(second) == learned(whole)
    evaluations = [event for driver in (first, second) for event in driver.events if event.startswith("evaluate")]
    assert [event for event in evaluations if event != "evaluate 0"] == ["evaluate 2", "evaluate 4"]
    assert "evaluate 0" in evaluations


def test_a_stop_while_groups_come_ends_the_rollout_and_does_not_train() -> None:
    driver = RecordingDriver()
    assert loop_of(driver, Schedule(steps=2, prompts_per_step=3), stop_after=3).run() == 0
    assert driver.events == ["sync 0", "rollout 0", "group 0.0", "score 0.0"]
    assert driver.rollouts[0].closed


@pytest.mark.parametrize("done", [0, 2])
def test_a_stop_before_the_first_step_does_not_wait_for_an_evaluation(done: int) -> None:
    driver = RecordingDriver()
    schedule = Schedule(steps=2, prompts_per_step=3, evaluate_every=1)
    assert loop_of(driver, schedule, done=done, stop_after=1).run() == done
    assert driver.events == [f"sync {done}"]


@pytest.mark.parametrize("done", [47, 100])
def test_steps_that_no_checkpoint_holds_are_saved_at_a_stop(done: int) -> None:
    """As after a death that lost no step: the loop begins again with steps that are done but not saved."""
    driver = RecordingDriver()
    assert Loop(driver, Schedule(100, 2, checkpoint_every=50), RunProgress(done), stop=Asked(driver, 0)).run() == done
    assert driver.events[-1] == f"checkpoint {done}"


@pytest.mark.parametrize(
    ("act", "saved"),
    [("score 1.0", [1]), ("sync 2", [2]), ("evaluate 2", [2]), ("update 1.0,1.1", []), ("sync 0", []), ("log 1", [1])],
)
def test_a_failing_act_ends_what_still_runs_and_loses_nothing_that_was_learned(act: str, saved: list[int]) -> None:
    """But in the middle of an update, where the weights are of no step."""
    driver = RecordingDriver()
    driver.fails_at = act
    with pytest.raises(RuntimeError, match=act):
        loop_of(driver, Schedule(steps=3, prompts_per_step=2, evaluate_every=2), evaluated=True).run()
    assert all(rollout.closed for rollout in driver.rollouts[-1:] if "score" in act)
    assert [event for event in driver.events if event.startswith("checkpoint")] == [f"checkpoint {n}" for n in saved]
    logged = [done for done, _, _ in driver.logged]
    assert logged == list(range(1, (saved or [max(logged, default=0)])[0] + 1))


@pytest.mark.parametrize(("error", "saves"), [(RoleDied, False), (RoleLost, True), (RoleRaised, True)])
def test_a_model_that_died_is_not_asked_to_save(error: type[RoleFailed], saves: bool) -> None:
    class Dies(RecordingDriver):
        def sync(self, version: int) -> Mapping[str, float]:
            if version:
                raise error("of a test", "policy", 0, "sync")
            return super().sync(version)

        def checkpoint(self, done: int, *, evaluated: bool) -> None:
            super().checkpoint(done, evaluated=evaluated)
            raise RoleDied("another one", "critic", 0, "save")

    driver = Dies()
    with pytest.raises(error, match="of a test"):
        loop_of(driver, Schedule(steps=2, prompts_per_step=2)).run()
    assert ("checkpoint 1" in driver.events) is saves


def test_a_batch_with_a_missing_group_does_not_let_later_ones_start_early() -> None:
    class Loses(RecordingDriver):
        def rollout(self, step: int, prompts: int) -> Rollout:
            return super().rollout(step, prompts - 1)

    driver = Loses()
    loop_of(driver, Schedule(steps=4, prompts_per_step=2)).run()
    order = [event.split()[0] for event in driver.events if event.startswith(("rollout", "update"))]
    assert order == ["rollout", "update"] * 4


def test_parts_of_a_step_sum_to_its_time() -> None:
    driver = RecordingDriver()
    loop_of(driver, Schedule(steps=2, prompts_per_step=2, evaluate_every=1, checkpoint_every=1)).run()
    first, second = (seconds for _, _, seconds in driver.logged)
    # The sync and the evaluation before the first step are part of none.
    assert first == {GENERATE: 5, SCORE: 3, TRAIN: 7, SYNC: 5, EVALUATE: 11, IDLE: 0, "step": 31}
    # What follows the log (0.5 s of it, the checkpoint) belongs to the next report, so that nothing is left out.
    assert second == {GENERATE: 5, SCORE: 3, TRAIN: 7, SYNC: 5, EVALUATE: 11, IDLE: 0.5, "checkpoint": 13, "step": 44.5}


def test_an_inner_part_stops_the_outer_one() -> None:
    clock = FakeClock()
    timings = Timings(clock)
    with timings.part(SCORE):
        clock.work(1)
        with timings.part(IDLE):
            clock.work(10)
        clock.work(2)
    assert timings.take() == {GENERATE: 0, SCORE: 3, TRAIN: 0, SYNC: 0, IDLE: 10, "step": 13}


@given(
    batch=st.integers(1, 5),
    max_staleness=st.integers(0, 3),
    driver=st.lists(st.sampled_from(["start", "finish", "learn"]), max_size=120),
)
def test_admission_bounds_staleness_and_never_starves(batch: int, max_staleness: int, driver: list[str]) -> None:
    """Against a model: every prompt remembers the version at its start, batches are learned in the order of ending."""
    admission = Admission(batch, max_staleness)
    version, running, ended = 0, [], []
    for act in driver:
        if act == "start":
            room = admission.room(version)
            with pytest.raises(ValueError, match="there is room for"):
                admission.start(room + 1, version)
            admission.start(room, version)
            running += [version] * room
        elif act == "finish" and running:
            admission.accept(1)
            ended.append(running.pop(0))
        elif act == "learn" and len(ended) >= batch:
            learned, ended = ended[:batch], ended[batch:]
            assert all(version - started <= max_staleness for started in learned)
            version += 1
        assert admission.running == len(running)
        # Always enough may run or wait for the next batch to become full.
        assert admission.room(version) + len(running) + len(ended) >= batch


def test_admission_with_staleness_0_is_one_batch_at_a_time() -> None:
    admission = Admission(batch=4, max_staleness=0)
    assert admission.room(version=0) == 4
    admission.start(4, version=0)
    admission.accept(4)
    assert admission.room(version=0) == 0
    assert admission.room(version=1) == 4
    with pytest.raises(ValueError, match="1 prompts end where 0 run"):
        admission.accept(1)

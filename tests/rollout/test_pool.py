"""The pool: conservation of prompts whatever dies, seeds, streaming, deadlines, deterministic mode."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from queue import SimpleQueue

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleRaised
from rlhf_ray.data.records import Sample
from rlhf_ray.rollout import collection
from rlhf_ray.rollout import pool as pool_module
from rlhf_ray.rollout.dispatch import EngineLost, RequestEnded, StepFailed
from rlhf_ray.rollout.interfaces import BadRollout, Generate, NoEngineLeft, PromptBatch, RolloutTask
from rlhf_ray.rollout.pool import Restore, RolloutPool, make_tasks, prompt_seed
from rlhf_ray.rollout.requests import GenerationRequest, GenerationResult
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from tests.rollout.fake_engine import FakeEncoder, FakeEngine, prompts, signature

SINGLE_TURN = SingleTurn(FakeEncoder(), Sampling(max_tokens=6))
NO_ROOM = RoleRaised("rollout engine 0 found no memory", "rollout", 0, "restart")
NO_ROOM.trace = "Traceback (most recent call last): ..."


def pool_of(
    engines: Sequence[FakeEngine],
    *,
    deterministic: bool = False,
    restore: Restore | None = None,
    deadline_seconds: float = 30,
) -> RolloutPool:
    return RolloutPool(
        engines, SINGLE_TURN, deadline_seconds=deadline_seconds, deterministic=deterministic, restore=restore
    )


def collect(pool: RolloutPool, count: int, **changes: int) -> list[list[Sample]]:
    arguments = {"step": 3, "version": 1, "samples_per_prompt": 2, "seed": 7} | changes
    running = pool.run(PromptBatch(prompts(count), **arguments))
    groups = list(running)
    assert running.progress.finished == running.progress.groups == count
    assert running.progress.tokens == sum(len(sample.response_ids) for group in groups for sample in group)
    return groups


def signatures(groups: list[list[Sample]]) -> list[tuple[object, ...]]:
    return [signature(sample) for group in groups for sample in group]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 12),
    samples=st.integers(1, 3),
    deaths=st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=4),
    shuffle=st.integers(0, 99),
    deterministic=st.booleans(),
    comes_back=st.booleans(),
)
def test_each_prompt_is_answered_exactly_once_whatever_dies(
    count: int, samples: int, deaths: list[int | None], shuffle: int, deterministic: bool, comes_back: bool
) -> None:
    engines = [FakeEngine(i, dies_after=after, shuffle=shuffle + i) for i, after in enumerate(deaths)]
    reborn = [FakeEngine(i, shuffle=shuffle) if comes_back else NO_ROOM for i in range(len(deaths))]
    with pool_of([FakeEngine()]) as healthy:
        expected = collect(healthy, count, samples_per_prompt=samples)
    with pool_of(engines, deterministic=deterministic, restore=lambda rank, error: reborn[rank]) as pool:
        try:
            groups = collect(pool, count, samples_per_prompt=samples)
        except NoEngineLeft:
            assert not comes_back
            assert all(after is not None for after in deaths)
            return
    assert Counter(group[0].prompt_id for group in groups) == Counter(str(i) for i in range(count))
    assert all([s.index for s in group] == list(range(samples)) for group in groups)
    assert set(signatures(groups)) == set(signatures(expected))
    if deterministic:
        assert [group[0].prompt_id for group in groups] == [str(i) for i in range(count)]


def test_a_sample_carries_all_that_is_known_of_it() -> None:
    with pool_of([FakeEngine(version=4)]) as pool:
        [group] = collect(pool, 1, version=4)
    sample = group[1]
    assert (sample.prompt_id, sample.group_id, sample.index, sample.attempt) == ("0", "3/0", 1, 0)
    assert sample.seed == prompt_seed(7, 3, "0") + 1
    assert sample.prompt == "prompt 0"
    assert sample.columns == {"answer": 0}
    assert sample.response == " ".join(map(str, sample.response_ids))
    assert sample.written.all()
    assert len(sample.written) == len(sample.behaviour_logprobs) == len(sample.response_ids)
    assert [(s.start, s.end, s.version) for s in sample.weight_versions] == [(0, len(sample.response_ids), 4)]


def test_seeds_depend_on_run_step_prompt_and_occurrence_only() -> None:
    assert prompt_seed(0, 0, "17") == 4604799002047290683  # the same in every process, for ever
    different = {prompt_seed(*key) for key in [(0, 0, "1"), (1, 0, "1"), (0, 1, "1"), (0, 0, "2"), (0, 0, "1", 1)]}
    assert len(different) == 5
    with pool_of([FakeEngine()]) as pool:
        twice = list(pool.run(PromptBatch(prompts(1) * 2, step=0, version=1, samples_per_prompt=1, seed=0)))
    assert len({group[0].group_id for group in twice}) == 2
    assert len({group[0].seed for group in twice}) == 2


def test_a_step_is_one_call_per_engine_and_work_is_shared_evenly() -> None:
    engines = [FakeEngine(i) for i in range(3)]
    with pool_of(engines) as pool:
        collect(pool, 9)
    assert [[len(call) for call in engine.calls] for engine in engines] == [[3], [3], [3]]


def test_groups_arrive_while_others_still_run() -> None:
    engine = FakeEngine()
    engine.hangs_on = {"3/1/"}
    with pool_of([engine]) as pool:
        running = pool.run(PromptBatch(prompts(4), step=3, version=1, samples_per_prompt=1, seed=0))
        first = [next(running)[0].prompt_id for _ in range(3)]
        assert sorted(first) == ["0", "2", "3"]
        assert running.progress.finished == 3
        assert running.progress.tokens > 0
        running.close()
        wait_until(lambda: engine.closed_early == 1)
        assert list(running) == []


def test_an_engine_that_dies_hands_its_unfinished_prompts_on() -> None:
    engines = [FakeEngine(0, dies_after=2), FakeEngine(1)]
    with pool_of(engines) as pool:
        groups = collect(pool, 10)
        assert pool.serving == [1]
        assert Counter(sample.attempt for group in groups for sample in group) == {0: 14, 1: 6}
        collect(pool, 4)
        assert len(engines[0].calls) == 1


def test_restore_runs_in_the_thread_that_takes_groups_and_the_engine_serves_again() -> None:
    threads, errors = [], []

    def restore(rank: int, error: Exception) -> FakeEngine:
        threads.append(threading.current_thread())
        errors.append(str(error))
        return FakeEngine(rank)

    with pool_of([FakeEngine(0, dies_after=1)], restore=restore) as pool:
        assert len(collect(pool, 5)) == 5
        assert pool.serving == [0]
    assert threads == [threading.current_thread()]
    assert errors == ["fake engine 0 died"]


def test_no_engine_left_says_why_each_was_lost() -> None:
    with (
        pool_of([FakeEngine(0, dies_after=1), FakeEngine(1, dies_after=0)]) as pool,
        pytest.raises(NoEngineLeft, match=r"fake engine 0 died; fake engine 1 died"),
    ):
        collect(pool, 6)


def test_no_engine_left_says_why_one_was_not_started_again() -> None:
    with (
        pool_of([FakeEngine(0, dies_after=1)], restore=lambda *_: NO_ROOM) as pool,
        pytest.raises(NoEngineLeft, match=r"fake engine 0 died; its restart: rollout engine 0 found no memory$"),
    ):
        collect(pool, 6)


def test_a_prompt_that_kills_every_engine_ends_the_step() -> None:
    with (
        pool_of([FakeEngine(dies_after=0)], restore=lambda rank, error: FakeEngine(rank, dies_after=0)) as pool,
        pytest.raises(BadRollout, match=r"prompt 0 was sent 5 times without an answer; last: fake engine 0 died"),
    ):
        collect(pool, 1)


def test_a_silent_engine_is_lost_at_the_deadline_which_names_engine_and_request() -> None:
    silent = FakeEngine(0)
    silent.hangs_on = {"3/0/"}
    with pool_of([silent], deadline_seconds=0.2) as pool:
        with pytest.raises(NoEngineLeft, match=r"fake engine 0 did not answer request 0/3/0/0 within 0.2 s") as raised:
            collect(pool, 1)
        assert isinstance(pool._seating.seats[0].lost, DeadlineExceeded)
        assert raised.value.role == "rollout"
    silent = FakeEngine(0)
    silent.hangs_on = {"3/0/"}
    with pool_of([silent, FakeEngine(1)], deadline_seconds=0.2) as pool:
        assert len(collect(pool, 4)) == 4
        assert pool.serving == [1]


class NeverEnds:
    """A rollout that waits for what never comes, as one with a tool can, after some answers of its engine."""

    def __init__(self, answers: int = 0) -> None:
        self._answers = answers

    async def __call__(self, generate: Generate, task: RolloutTask) -> list[Sample]:
        for turn in range(self._answers):
            await generate(GenerationRequest(f"{task.request_id}/turn{turn}", task.prompt.prompt_ids, 1, 0, 4))
        await asyncio.Event().wait()
        return []


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_step_in_which_nothing_happens_ends_at_its_deadline(
    deterministic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "OWN_ERROR_SECONDS", 0.1)
    with RolloutPool([FakeEngine()], NeverEnds(), deadline_seconds=0.1, deterministic=deterministic) as pool:
        with pytest.raises(
            DeadlineExceeded, match=r"generate stood still after 0 of 2 groups: no answer within 0.2 s"
        ) as e:
            collect(pool, 2)
        assert (e.value.role, e.value.phase) == ("rollout", "generate")
        assert list(pool.run(PromptBatch([], step=0, version=1, samples_per_prompt=1, seed=0))) == [], (
            "the pool goes on"
        )


class Waits(SimpleQueue):
    """A queue that notes how long its reader would wait, and says when nothing is left."""

    def __init__(self) -> None:
        self.seconds: list[float | None] = []

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        self.seconds.append(timeout)
        return super().get(block=False)


def test_each_answer_of_a_rollout_of_many_turns_begins_the_deadline_anew() -> None:
    events, running = Waits(), Future()
    for event in (RequestEnded(), EngineLost(), RequestEnded()):
        events.put(event)
    lost: list[bool] = []
    groups = collection.Collection(
        events,
        running,
        make_tasks(PromptBatch(prompts(1), step=0, version=0, samples_per_prompt=1, seed=0), run=0),
        in_order=False,
        engine_lost=lambda: lost.append(True),
        deadline_seconds=30,
    )
    with pytest.raises(DeadlineExceeded, match="within 90 s"):
        next(groups)
    assert events.seconds == [90] * 4
    assert lost == [True]
    assert running.cancelled(), "what still runs is ended"


def test_every_answer_and_every_lost_request_is_a_sign_of_life() -> None:
    silent = FakeEngine(0)
    silent.hangs_on = {"turn1"}
    with RolloutPool([silent], NeverEnds(answers=2), deadline_seconds=1) as pool:
        running = pool.run(PromptBatch(prompts(1), step=3, version=1, samples_per_prompt=1, seed=0))
        events = [running._events.get(timeout=60) for _ in range(4)]
    assert [type(event) for event in events] == [RequestEnded, RequestEnded, EngineLost, StepFailed]


def test_a_rollout_that_blocks_the_pool_does_not_hold_its_owner_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pool_module, "LOOP_SECONDS", 0.1)
    began, goes_on = threading.Event(), threading.Event()

    async def blocks(generate: Generate, task: RolloutTask) -> list[Sample]:
        began.set()
        goes_on.wait(60)
        return []

    pool = RolloutPool([FakeEngine()], blocks, deadline_seconds=30)
    try:
        pool.run(PromptBatch(prompts(1), step=3, version=1, samples_per_prompt=1, seed=0))
        assert began.wait(60)
        with pytest.raises(DeadlineExceeded, match=r"blocks the pool's thread, which did not restart within 0.1 s"):
            pool.replace(0, FakeEngine())
        pool.close()
        assert "did not close within 0.1 s; its thread is left behind" in caplog.text
    finally:
        goes_on.set()


def test_answers_by_old_weights_are_refused() -> None:
    with pool_of([FakeEngine(version=1)]) as pool, pytest.raises(BadRollout, match=r"version 1, .* at version 2"):
        collect(pool, 2, version=2)


def test_a_wrong_number_of_completions_is_refused() -> None:
    class Stingy(FakeEngine):
        def _result(self, request: GenerationRequest) -> GenerationResult:
            return GenerationResult(request.request_id, super()._result(request).completions[:1])

    with pool_of([Stingy()]) as pool, pytest.raises(BadRollout, match=r"returned completions \[.\], but 2 were asked"):
        collect(pool, 2)


def test_other_errors_end_the_step_and_the_pool_serves_the_next_one() -> None:
    class Refuses(FakeEngine):
        def _answers(self, request: GenerationRequest) -> bool:
            if len(self.calls) == 1:
                raise ValueError("prompt longer than the model's context")
            return True

    with pool_of([Refuses()]) as pool:
        with pytest.raises(ValueError, match="longer than the model's context"):
            collect(pool, 3)
        assert len(collect(pool, 3)) == 3


def test_deterministic_mode_sends_each_engine_its_queue_by_index_in_one_call() -> None:
    engines = [FakeEngine(0, shuffle=5), FakeEngine(1, shuffle=6)]
    with pool_of(engines, deterministic=True) as pool:
        groups = collect(pool, 5)
    assert [group[0].prompt_id for group in groups] == list("01234")
    assert [[r.request_id for r in e.calls[0]] for e in engines] == [
        ["0/3/0/0", "0/3/2/0", "0/3/4/0"],
        ["0/3/1/0", "0/3/3/0"],
    ]
    assert [engine.queued for engine in engines] == [[True], [True]]


@pytest.mark.parametrize("restored", [True, False])
def test_deterministic_mode_repeats_the_whole_queue_of_a_dead_engine(restored: bool) -> None:
    dying, other, reborn = FakeEngine(0, dies_after=2), FakeEngine(1), FakeEngine(0)
    with pool_of([dying, other], deterministic=True, restore=lambda *_: reborn if restored else NO_ROOM) as pool:
        groups = collect(pool, 8)
    repeated = (reborn if restored else other).calls[-1]
    assert [r.request_id for r in repeated] == ["0/3/0/1", "0/3/2/1", "0/3/4/1", "0/3/6/1"]
    assert [r.seed for r in repeated] == [r.seed for r in dying.calls[0]]
    assert len(groups) == 8


class TwoTurns:
    """A rollout of two requests, with a tool's answer between them."""

    async def __call__(self, generate: Generate, task: RolloutTask) -> list[Sample]:
        # Uneven delays: without the barrier of deterministic mode the second requests would come apart.
        await asyncio.sleep(0.001 * (int(task.prompt.prompt_id) % 3))
        first = (await SINGLE_TURN(generate, task))[0]
        await asyncio.sleep(0.001 * (int(task.prompt.prompt_id) % 2))
        tool = np.array([1, 2, 3], np.int32)
        ids = np.concatenate([task.prompt.prompt_ids, first.response_ids, tool])
        request = GenerationRequest(task.request_id + "/turn1", ids, 1, task.seed + 1000, max_tokens=4)
        second = (await generate(request)).completions[0]
        first.response_ids = np.concatenate([first.response_ids, tool, second.token_ids])
        first.behaviour_logprobs = np.concatenate([first.behaviour_logprobs, np.zeros(3, np.float32), second.logprobs])
        first.written = np.concatenate([first.written, np.zeros(3, bool), np.ones(len(second.token_ids), bool)])
        return [first]


@pytest.mark.parametrize("deterministic", [True, False])
def test_a_rollout_of_several_turns_attaches_without_change_and_starts_anew_when_its_engine_dies(
    deterministic: bool,
) -> None:
    def answers(engines: list[FakeEngine]) -> tuple[list[tuple[object, ...]], list[FakeEngine]]:
        with RolloutPool(engines, TwoTurns(), deadline_seconds=30, deterministic=deterministic) as pool:
            groups = collect(pool, 6, samples_per_prompt=1)
        assert all((~group[0].written).sum() == 3 for group in groups)
        return sorted(signatures(groups), key=str), engines

    plain, [engine] = answers([FakeEngine()])
    disturbed, _ = answers([FakeEngine(0, dies_after=5), FakeEngine(1)])
    assert plain == disturbed
    if deterministic:
        assert [len(call) for call in engine.calls] == [6, 6]


def test_closing_the_pool_ends_a_collection_that_still_waits() -> None:
    engine = FakeEngine()
    engine.hangs_on = {"3/0/"}
    pool = pool_of([engine])
    running = pool.run(PromptBatch(prompts(1), step=3, version=1, samples_per_prompt=1, seed=0))
    threading.Timer(0.1, pool.close).start()
    with pytest.raises(BadRollout, match="closed before all groups had come"):
        next(running)


def wait_until(condition: object) -> None:
    end = time.monotonic() + 5
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "condition did not come true"
        time.sleep(0.01)

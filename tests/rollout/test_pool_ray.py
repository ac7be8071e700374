"""The pool over Ray actors: streams, processes that are killed, calls that are dropped."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import ray

from rlhf_ray.cluster.errors import RoleDied, RoleRaised
from rlhf_ray.rollout.engine import EngineDirty
from rlhf_ray.rollout.interfaces import PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.rollout.requests import GenerationRequest, GenerationResult
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from tests.rollout.fake_engine import FakeEncoder, FakeEngine, prompts, signature

# Workers cannot import these modules, which pytest found by their paths.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
ray.cloudpickle.register_pickle_by_value(sys.modules[FakeEngine.__module__])

SINGLE_TURN = SingleTurn(FakeEncoder(), Sampling(max_tokens=6))


class FakeActor:
    """A fake engine in a process of its own, which can be told to misbehave."""

    def __init__(self, rank: int, trouble: str = "", seconds_per_bunch: float = 0.0) -> None:
        self._engine = FakeEngine(rank)
        self._trouble = trouble
        self._seconds = seconds_per_bunch
        self.ended_early = 0

    async def generate(
        self, requests: Sequence[GenerationRequest], *, queued: bool
    ) -> AsyncGenerator[Sequence[GenerationResult], None]:
        bunches = 0
        try:
            async for bunch in self._engine.generate(requests, queued=queued):
                await asyncio.sleep(self._seconds)
                yield bunch
                bunches += 1
                if bunches == 2 and self._trouble == "dies":
                    os.kill(os.getpid(), signal.SIGKILL)
                if bunches == 2 and self._trouble == "dirty":
                    raise EngineDirty("a transfer broke off")
                if bunches == 2 and self._trouble == "raises":
                    raise ValueError("prompt too long")
        except asyncio.CancelledError:
            self.ended_early += 1
            raise

    async def score(self, sequences: Sequence[np.ndarray]) -> list[Any]:
        return [sequence.tolist() for sequence in sequences]

    async def wake(self) -> None:
        await asyncio.sleep(60)

    async def calls_ended_early(self) -> int:
        return self.ended_early


@pytest.fixture
def start(ray_session: None) -> Iterator[Callable[..., RemoteEngine]]:
    actors = []

    def start_engine(rank: int, *arguments: Any) -> RemoteEngine:
        actor = ray.remote(FakeActor).options(num_cpus=0).remote(rank, *arguments)
        actors.append(actor)
        return RemoteEngine(actor, rank)

    yield start_engine
    for actor in actors:
        ray.kill(actor)


def collect(pool: RolloutPool, count: int) -> list[Any]:
    return list(pool.run(PromptBatch(prompts(count), step=0, version=1, samples_per_prompt=2, seed=0)))


@pytest.fixture
def expected() -> set[Any]:
    with RolloutPool([FakeEngine()], SINGLE_TURN, deadline_seconds=60) as pool:
        return {signature(sample) for group in collect(pool, 20) for sample in group}


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("trouble", ["", "dies", "dirty"])
def test_samples_are_the_same_through_actors_whatever_happens_to_one(
    start: Callable[..., RemoteEngine], expected: set[Any], trouble: str, deterministic: bool
) -> None:
    engines = [start(0, trouble), start(1)]
    with RolloutPool(engines, SINGLE_TURN, deadline_seconds=60, deterministic=deterministic) as pool:
        groups = collect(pool, 20)
        assert pool.serving == ([1] if trouble else [0, 1])
    assert Counter(group[0].prompt_id for group in groups) == Counter(str(i) for i in range(20))
    assert {signature(sample) for group in groups for sample in group} == expected


def test_a_killed_engine_that_is_started_again_finishes_its_prompts(
    start: Callable[..., RemoteEngine], expected: set[Any]
) -> None:
    errors: list[Exception] = []

    def restore(rank: int, error: Exception) -> RemoteEngine:
        errors.append(error)
        return start(rank)

    with RolloutPool([start(0, "dies")], SINGLE_TURN, deadline_seconds=60, restore=restore) as pool:
        groups = collect(pool, 20)
    assert {signature(sample) for group in groups for sample in group} == expected
    assert [type(error) for error in errors] == [RoleDied]
    assert "rollout rank 0 died in generate" in str(errors[0])


def test_errors_of_a_request_end_the_step_with_the_engine_named(start: Callable[..., RemoteEngine]) -> None:
    with (
        RolloutPool([start(0, "raises")], SINGLE_TURN, deadline_seconds=60) as pool,
        pytest.raises(RoleRaised, match=r"ValueError: prompt too long \(rollout rank 0, generate\)"),
    ):
        collect(pool, 20)


def test_groups_arrive_early_and_closing_tells_the_actor_to_stop(start: Callable[..., RemoteEngine]) -> None:
    engine = start(0, "", 0.2)
    with RolloutPool([engine], SINGLE_TURN, deadline_seconds=60) as pool:
        collect_one = pool.run(PromptBatch(prompts(60), step=0, version=1, samples_per_prompt=1, seed=0))
        next(collect_one)
        assert collect_one.progress.finished < 30
        collect_one.close()
        end = time.monotonic() + 60
        while ray.get(engine._actor.calls_ended_early.remote()) != 1:
            assert time.monotonic() < end, "the actor was not told"
            time.sleep(0.05)

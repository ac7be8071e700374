"""A greedy response beside each group: asked for together with the drawn ones, recorded and replayed as one group."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.rollout.interfaces import PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.recording import Recorder, Replay
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from tests.rollout.fake_engine import FakeEncoder, FakeEngine, prompts, signature

ASKED: dict[str, Any] = {"step": 3, "version": 1, "seed": 7, "samples_per_prompt": 3, "greedy_last": True}


def pool_of(*engines: FakeEngine, deterministic: bool = False) -> RolloutPool:
    turn = SingleTurn(FakeEncoder(), Sampling(max_tokens=6, temperature=0.7))
    return RolloutPool(engines, turn, deadline_seconds=5, deterministic=deterministic)


@pytest.mark.parametrize("deterministic", [False, True])
def test_the_last_of_each_group_is_greedy(deterministic: bool) -> None:
    engines = FakeEngine(0), FakeEngine(1)
    with pool_of(*engines, deterministic=deterministic) as pool:
        groups = list(pool.run(PromptBatch(prompts(5), **ASKED)))
    assert sorted(group[0].prompt_id for group in groups) == [str(number) for number in range(5)]
    for group in groups:
        assert [sample.index for sample in group] == [0, 1, 2]
    requests = [request for engine in engines for call in engine.calls for request in call]
    assert sorted((request.n, request.temperature) for request in requests) == [(1, 0.0)] * 5 + [(2, 0.7)] * 5
    assert len({request.request_id for request in requests}) == 10
    if deterministic:
        assert [len(engine.calls) for engine in engines] == [1, 1], "all requests of an engine leave together"


def test_the_drawn_ones_are_those_of_a_group_without_it() -> None:
    with pool_of(FakeEngine(), deterministic=True) as pool:
        found = list(pool.run(PromptBatch(prompts(4), **ASKED)))
        alone = list(pool.run(PromptBatch(prompts(4), **(ASKED | {"samples_per_prompt": 2, "greedy_last": False}))))
    assert [[signature(sample) for sample in group[:-1]] for group in found] == [
        [signature(sample) for sample in group] for group in alone
    ]


def test_an_engine_that_dies_repeats_both() -> None:
    with pool_of(FakeEngine(0, dies_after=3), FakeEngine(1)) as pool:
        groups = list(pool.run(PromptBatch(prompts(6), **ASKED)))
    assert sorted(group[0].prompt_id for group in groups) == [str(number) for number in range(6)]
    assert all(len(group) == 3 for group in groups)


def test_a_recording_says_whether_it_has_them(tmp_path: Path) -> None:
    path = tmp_path / "samples"
    with pool_of(FakeEngine()) as pool:
        recorded = list(Recorder(pool, path).run(PromptBatch(prompts(3), **ASKED)))
    replayed = list(Replay(path).run(PromptBatch(prompts(3), **ASKED)))
    assert [list(map(signature, group)) for group in replayed] == [list(map(signature, group)) for group in recorded]
    with pytest.raises(BadInput, match="greedy_last True, this run asks for False"):
        Replay(path).run(PromptBatch(prompts(3), **(ASKED | {"greedy_last": False})))

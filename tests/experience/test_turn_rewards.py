"""Rewards of turns: where they go, that they sum up to the score, and what a failed environment does to the others."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import TURN_REWARDS, Episode, Sample
from rlhf_ray.experience.experience import Experience, RoleOutputs, estimate
from tests.samples import make_sample

GAMMA, LAMBDA = 0.9, 0.8


@st.composite
def episodes(draw: st.DrawFn) -> list[list[tuple[int, float]]]:
    """Turns of episodes of one prompt: how many tokens each has, and what it earns."""
    turn = st.tuples(st.integers(1, 3), st.sampled_from([0.0, 0.5, -1.0]))
    return draw(st.lists(st.lists(turn, min_size=1, max_size=4), min_size=2, max_size=5))


def sample_of(index: int, turns: list[tuple[int, float]], given: bool = True) -> Sample:
    """A turn of the policy, then a token of the environment, and so on, to the last turn of the policy."""
    written: list[bool] = []
    rewards: list[float] = []
    for number, (tokens, reward) in enumerate(turns):
        written += [False] * bool(number) + [True] * tokens
        rewards += [0.0] * (bool(number) + tokens - 1) + [reward]
    extras = {TURN_REWARDS: np.array(rewards, np.float32)} if given else {}
    return make_sample(
        len(written), 0, index, written=np.array(written), extras=extras, episode=Episode(reward=sum(rewards))
    )


def experience_of(samples: list[Sample], scores: list[float], values: np.ndarray | None, **how: Any) -> Experience:
    batch = TokenBatch.from_samples(samples)
    logprobs = torch.zeros(int(batch.response_lengths.sum()))
    outputs = RoleOutputs(logprobs, None, None if values is None else torch.from_numpy(values), torch.tensor(scores))
    algorithm = AlgorithmConfig.model_validate({"whiten_advantages": False} | how)
    return estimate(samples, batch, outputs, algorithm, 0.0, longest=64)


@settings(max_examples=40, deadline=None)
@given(rows=episodes(), extra=st.sampled_from([0.0, 2.0]), seed=st.integers(0, 99))
def test_gae_as_the_loops_say(rows: list[list[tuple[int, float]]], extra: float, seed: int) -> None:
    samples = [sample_of(index, turns) for index, turns in enumerate(rows)]
    scores = [sum(reward for _, reward in turns) + extra for turns in rows]
    values = np.random.default_rng(seed).normal(size=sum(len(s.written) for s in samples)).astype(np.float32)
    found = experience_of(samples, scores, values, advantages="gae", gamma=GAMMA, gae_lambda=LAMBDA)
    start = 0
    for sample in samples:
        own = np.flatnonzero(sample.written)
        rewards = sample.extras[TURN_REWARDS].astype(float)
        rewards[own[-1]] += extra
        advantage, next_value = 0.0, 0.0
        for place in own[::-1]:
            value = float(values[start + place])
            advantage = rewards[place] + GAMMA * next_value - value + GAMMA * LAMBDA * advantage
            assert float(found.columns["advantages"][start + place]) == pytest.approx(advantage, abs=1e-4)
            next_value = value
        start += len(sample.written)


@settings(max_examples=40, deadline=None)
@given(rows=episodes(), gamma=st.sampled_from([1.0, GAMMA]))
def test_returns_count_what_comes_from_each_turn_on(rows: list[list[tuple[int, float]]], gamma: float) -> None:
    samples = [sample_of(index, turns) for index, turns in enumerate(rows)]
    scores = [sum(reward for _, reward in turns) for turns in rows]
    found = experience_of(samples, scores, None, advantages="reinforce_plus_plus", gamma=gamma).columns["advantages"]
    start = 0
    for sample in samples:
        following = 0.0
        for place in np.flatnonzero(sample.written)[::-1]:
            following = float(sample.extras[TURN_REWARDS][place]) + gamma * following
            assert float(found[start + place]) == pytest.approx(following, abs=1e-5)
        start += len(sample.written)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "opo", "reinforce_plus_plus_baseline"])
def test_estimators_that_compare_groups_take_the_whole(name: str) -> None:
    rows = [[(2, 0.5), (1, 0.0)], [(1, 0.0)], [(3, 1.0), (1, 1.0)]]
    scores = [0.5, 0.0, 2.0]
    by_turn, by_whole = (
        experience_of([sample_of(i, row, given) for i, row in enumerate(rows)], scores, None, advantages=name)
        for given in (True, False)
    )
    assert torch.equal(by_turn.columns["advantages"], by_whole.columns["advantages"])


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_plus_plus"])
def test_a_failed_environment_is_left_out_of_all_statistics(name: str) -> None:
    rows = [[(2, 0.5), (1, 0.0)], [(1, 1.0)], [(3, 1.0), (1, 1.0)]]
    scores = [0.5, 1.0, 2.0]
    healthy = [sample_of(index, row) for index, row in enumerate(rows)]
    failed = sample_of(3, [(2, 1.0), (2, 1.0)])
    failed.finish_reason, failed.episode = "error", Episode(failure=("died", "its process ended in step"))
    alone = experience_of(healthy, scores, None, advantages=name)
    beside = experience_of([*healthy, failed], [*scores, math.nan], None, advantages=name)
    count = len(alone.columns["advantages"])
    assert torch.equal(beside.columns["advantages"][:count], alone.columns["advantages"])
    assert not beside.columns["advantages"][count:].any()
    assert not beside.learned[count:].any()
    assert beside.metrics["objective/scores"] == alone.metrics["objective/scores"]
    assert beside.metrics["episodes/failed"] == 1.0

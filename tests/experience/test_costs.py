"""Advantages of rewards and costs against plain loops in float64; lambda over the batches of a run."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.config.algorithm import AlgorithmConfig, LagrangianConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import Sample
from rlhf_ray.experience.costs import CostConstraint, Costs, constraint_of
from rlhf_ray.experience.experience import Experience, RoleOutputs, estimate
from rlhf_ray.tracking.names import describe
from tests.samples import make_sample

BETA = 0.3
GAMMA, DECAY = 0.97, 0.9


def algorithm_with(whitened: bool = False, place: str = "reward", **lagrangian: object) -> AlgorithmConfig:
    return AlgorithmConfig.model_validate(
        {
            "gamma": GAMMA,
            "gae_lambda": DECAY,
            "whiten_advantages": whitened,
            "kl": {"place": place},
            "lagrangian": lagrangian or None,
        }
    )


class Batch:
    """Some responses, and all that roles said of them."""

    def __init__(self, seed: int, lengths: list[int], scores: list[float], costs: list[float]) -> None:
        random, tokens = np.random.default_rng(seed), sum(lengths)
        self.lengths, self.scores, self.costs = lengths, scores, costs
        self.written = random.random(tokens) < 0.8
        self.logprobs = -random.exponential(1.0, tokens).astype(np.float32)
        self.reference = self.logprobs + random.normal(0, 0.5, tokens).astype(np.float32)
        self.values, self.cost_values = random.normal(0, 1, (2, tokens)).astype(np.float32)

    def samples(self) -> list[Sample]:
        ends = np.cumsum(self.lengths)
        return [
            make_sample(
                length,
                row,
                written=self.written[end - length : end],
                behaviour_logprobs=self.logprobs[end - length : end],
            )
            for row, (length, end) in enumerate(zip(self.lengths, ends, strict=True))
        ]

    def experience(self, algorithm: AlgorithmConfig, constraint: CostConstraint | None) -> Experience:
        samples = self.samples()
        costs = Costs(torch.tensor(self.costs, dtype=torch.float32), torch.from_numpy(self.cost_values))
        measured = RoleOutputs(
            logprobs=torch.from_numpy(self.logprobs),
            reference_logprobs=torch.from_numpy(self.reference),
            values=torch.from_numpy(self.values),
            scores=torch.tensor(self.scores, dtype=torch.float32),
            costs=None if constraint is None else costs,
        )
        batch = TokenBatch.from_samples(samples)
        return estimate(samples, batch, measured, algorithm, BETA, longest=9, constraint=constraint)

    def loops(self, terminal: list[float], values: np.ndarray, sign: float) -> tuple[list[float], list[float]]:
        """GAE of -sign x beta x KL and a terminal score, token by token, backwards."""
        advantages, returns = [0.0] * len(values), [0.0] * len(values)
        end = 0
        for length, score in zip(self.lengths, terminal, strict=True):
            end += length
            places = [t for t in range(end - length, end) if self.written[t]]
            advantage = following = 0.0
            for t in reversed(places):
                kl = float(self.logprobs[t]) - float(self.reference[t])
                reward = -sign * BETA * kl + (score if t == places[-1] else 0.0)
                delta = reward + GAMMA * following - float(values[t])
                advantage = delta + GAMMA * DECAY * advantage
                following = float(values[t])
                advantages[t], returns[t] = advantage, advantage + following
        return advantages, returns


@st.composite
def drawn(draw: st.DrawFn) -> Batch:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=6))
    score = st.sampled_from([math.nan, -2.0, 0.0, 0.5, 3.0])
    scores = [draw(score) for _ in lengths]
    return Batch(draw(st.integers(0, 999)), lengths, scores, [draw(score) for _ in lengths])


@settings(deadline=None)
@given(batch=drawn(), multiplier=st.sampled_from([0.25, 1.0, 4.0]))
def test_as_the_loops_say(batch: Batch, multiplier: float) -> None:
    constraint = CostConstraint.from_config(LagrangianConfig(multiplier=multiplier, learning_rate=0))
    found = batch.experience(algorithm_with(multiplier=multiplier), constraint)
    known = [math.isfinite(s) and math.isfinite(c) for s, c in zip(batch.scores, batch.costs, strict=True)]
    learned = np.repeat(known, batch.lengths) & batch.written
    np.testing.assert_array_equal(found.learned.numpy(), learned)

    finite = [[v if k else 0.0 for v, k in zip(values, known, strict=True)] for values in (batch.scores, batch.costs)]
    rewards, returns = batch.loops(finite[0], batch.values, sign=1)
    costs, cost_returns = batch.loops(finite[1], batch.cost_values, sign=-1)
    wanted = (np.array(rewards) - multiplier * np.array(costs)) / (1 + multiplier)
    np.testing.assert_allclose(found.columns["advantages"].numpy()[learned], wanted[learned], atol=1e-5, rtol=1e-4)
    for role, expected in (("critic", returns), ("cost_critic", cost_returns)):
        column = found.critic_columns[role]["returns"].numpy()
        np.testing.assert_allclose(column[learned], np.array(expected)[learned], atol=1e-5, rtol=1e-4)
    assert bool(found.columns["advantages"].isfinite().all())
    assert all(math.isfinite(value) for value in found.metrics.values()), found.metrics
    assert not [name for name in found.metrics if not describe(name).meaning]
    if any(known):
        seen = [cost for cost, k in zip(batch.costs, known, strict=True) if k]
        assert found.constraint is not None
        assert found.constraint.mean_cost == pytest.approx(np.mean(seen))


@settings(deadline=None)
@given(batch=drawn(), whitened=st.booleans(), place=st.sampled_from(["reward", "loss"]))
def test_without_lambda_all_is_as_without_costs(batch: Batch, whitened: bool, place: str) -> None:
    """Bit for bit, where every cost is known: one that failed is not learned from, whatever lambda is."""
    batch.costs = [0.25] * len(batch.costs)
    constraint = CostConstraint.from_config(LagrangianConfig(multiplier=0, learning_rate=0))
    with_costs = batch.experience(algorithm_with(whitened, place, multiplier=0, learning_rate=0), constraint)
    plain = batch.experience(algorithm_with(whitened, place), None)
    for name, column in plain.columns.items():
        assert torch.equal(with_costs.columns[name], column), name
    for name, column in plain.critic_columns["critic"].items():
        assert torch.equal(with_costs.critic_columns["critic"][name], column), name
    assert plain.metrics.items() <= with_costs.metrics.items()


def test_the_weight_of_the_kl_does_not_depend_on_lambda() -> None:
    """Costs and scores of 0 and critics that expect nothing: what is left is the penalty, which all weigh the same."""
    batch = Batch(1, [4, 5], [0.0, 0.0], [0.0, 0.0])
    batch.values[:] = batch.cost_values[:] = 0
    found = [
        batch.experience(algorithm_with(multiplier=m), constraint).columns["advantages"]
        for m in (0.0, 0.5, 3.0)
        for constraint in [CostConstraint.from_config(LagrangianConfig(multiplier=m, learning_rate=0))]
    ]
    assert found[0].abs().max() > 0.05
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_lambda_follows_the_newest_episodes() -> None:
    constraint = CostConstraint.from_config(
        LagrangianConfig(multiplier=0.5, cost_limit=1.0, learning_rate=0.1, maximum=0.6, delay_steps=1, window=4)
    )
    assert math.isnan(constraint.mean_cost)
    rested = constraint.after([3.0, 3.0])
    assert (rested.mean_cost, rested.multiplier.value) == (3.0, 0.5), "the first update is a rest"
    moved = rested.after([0.0, 2.0, 1.0])
    assert moved.mean_cost == pytest.approx((3 + 0 + 2 + 1) / 4), "the oldest one is forgotten"
    assert moved.multiplier.value == pytest.approx(0.5 * math.exp(0.1 * 0.5 * 0.5))
    bounded = moved.after([50.0] * 6)
    assert bounded.mean_cost == 50, "a batch of more than the window counts whole"
    assert bounded.multiplier.value == pytest.approx(0.6)
    assert bounded.after([]) is bounded, "a batch whose costs all failed moves nothing"
    falling = bounded.after([-9.0] * 6)
    assert falling.multiplier.value < bounded.multiplier.value


def test_lambda_goes_on_from_a_checkpoint() -> None:
    settings = LagrangianConfig(multiplier=1.0, cost_limit=0.1, learning_rate=0.3, maximum=None, delay_steps=2)
    through = stopped = CostConstraint.from_config(settings)
    random = np.random.default_rng(0)
    for step in range(6):
        costs = random.normal(0.3, 1.0, 5).tolist()
        through, stopped = through.after(costs), stopped.after(costs)
        stopped = CostConstraint.from_config(settings).restored(json.loads(json.dumps(stopped.state())))
        assert stopped == through, step
    assert through.multiplier.value != 1.0


def test_only_a_learned_lambda_is_a_constraint() -> None:
    assert constraint_of(AlgorithmConfig()) is None
    assert constraint_of(AlgorithmConfig(lagrangian=LagrangianConfig(place="reward"))) is None
    found = constraint_of(AlgorithmConfig(lagrangian=LagrangianConfig(multiplier=0.5, window=3)))
    assert found is not None
    assert (found.multiplier.value, found.window) == (0.5, 3)


def test_failed_costs_leave_the_moments_of_rewards_alone() -> None:
    batch = Batch(3, [3, 3], [1.0, 2.0], [math.nan, 0.5])
    constraint = CostConstraint.from_config(LagrangianConfig())
    found = batch.experience(algorithm_with(multiplier=1.0), constraint)
    assert found.moments == RunningMoments().update(torch.tensor(batch.scores))
    assert found.constraint is not None
    assert found.constraint.recent == (0.5,)
    assert found.constraint == replace(found.constraint, window=128)

"""The optimizer steps of a batch: each row once in a pass, weights that sum to 1 over a step."""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.algorithm import Aggregation
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.experience.experience import Experience
from rlhf_ray.experience.minibatches import StepMetrics, draw_epochs


@st.composite
def experiences(draw: st.DrawFn) -> Experience:
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=12))
    arrays = [np.arange(length, dtype=np.int32) for length in lengths]
    batch = TokenBatch.from_sequences([np.arange(2, dtype=np.int32)] * len(lengths), arrays)
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rewarded = draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    learned = np.repeat(rewarded, lengths) & (random.random(sum(lengths)) < 0.7)
    values = torch.from_numpy(random.normal(size=sum(lengths)))
    nothing = [SimpleNamespace()] * len(lengths)
    columns, critics = {"advantages": values}, {"critic": {"returns": values}}
    return Experience(nothing, batch, torch.from_numpy(learned), columns, 0.0, {}, critics)  # type: ignore[arg-type]


@settings(deadline=None)
@given(experience=experiences(), epochs=st.integers(1, 3), minibatches=st.integers(1, 4), seed=st.integers(0, 100))
def test_each_row_once_in_a_pass_with_weights_that_sum_to_one(
    experience: Experience, epochs: int, minibatches: int, seed: int
) -> None:
    offsets = experience.batch.response_offsets
    learnable = {r for r in range(experience.batch.rows) if experience.learned[offsets[r] : offsets[r + 1]].any()}
    drawn = list(draw_epochs(experience, epochs, minibatches, (seed, 1)))
    assert len(drawn) == epochs
    for epoch in drawn:
        seen = Counter(int(row) for step in epoch.steps for row in step.rows)
        assert set(seen.values()) <= {1}
        assert learnable <= seen.keys(), "a step is left out only if none of its rows has anything to learn from"
        assert len(epoch.steps) <= minibatches
        weight = epoch.columns["weight"]
        assert weight.dtype == np.float32
        assert not weight[~experience.learned.numpy()].any()
        for rows in (step.rows for step in epoch.steps):
            index = experience.batch.flat_index(rows)
            chosen = weight[index][experience.learned.numpy()[index]]
            assert chosen.sum() == pytest.approx(1, abs=1e-5)
            assert np.ptp(chosen) == 0, "each learned token of a step counts alike"
        np.testing.assert_allclose(epoch.columns["advantages"], experience.columns["advantages"].float())
    if learnable == set(range(experience.batch.rows)) and minibatches <= experience.batch.rows:
        for epoch in drawn:
            sizes = [len(rows) for rows in (step.rows for step in epoch.steps)]
            assert len(sizes) == minibatches
            assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(
    experience=experiences(),
    minibatches=st.integers(1, 4),
    seed=st.integers(0, 100),
    mode=st.sampled_from(get_args(Aggregation)),
    constant=st.integers(6, 20),
)
def test_weights_are_those_of_the_mode_over_each_step(
    experience: Experience, minibatches: int, seed: int, mode: Aggregation, constant: int
) -> None:
    """Row by row, in loops; the critic's are means over tokens whatever the policy's are."""
    offsets, learned = experience.batch.response_offsets, experience.learned.numpy()
    [epoch] = draw_epochs(experience, 1, minibatches, (seed, 1), mode, constant)
    for step in epoch.steps:
        of_rows = {int(row): learned[offsets[row] : offsets[row + 1]] for row in step.rows}
        rows, tokens = sum(mask.any() for mask in of_rows.values()), sum(mask.sum() for mask in of_rows.values())
        total = 0.0
        for row, mask in of_rows.items():
            weight = {
                "token_mean": 1 / tokens,
                "token_sum": 1.0,
                "sequence_mean_token_mean": 1 / rows / max(mask.sum(), 1),
                "sequence_mean_token_sum": 1 / rows,
                "sequence_mean_token_sum_norm": 1 / rows / constant,
            }[mode]
            here = slice(offsets[row], offsets[row + 1])
            np.testing.assert_allclose(epoch.columns["weight"][here], mask * weight, rtol=1e-6)
            np.testing.assert_allclose(epoch.critic_columns["critic"]["weight"][here], mask / tokens, rtol=1e-6)
            total += float(mask.sum() * weight)
        assert step.total_weight == pytest.approx(total, rel=1e-5)


@settings(deadline=None)
@given(experience=experiences(), minibatches=st.integers(1, 4), seed=st.integers(0, 100), per_group=st.integers(1, 4))
def test_a_group_stays_in_one_step(experience: Experience, minibatches: int, seed: int, per_group: int) -> None:
    groups = np.arange(experience.batch.rows) // per_group
    drawn = list(draw_epochs(replace(experience, groups=groups), 2, minibatches, (seed, 1)))
    for epoch in drawn:
        held = [set(groups[step.rows].tolist()) for step in epoch.steps]
        assert sum(map(len, held)) == len(set().union(*held)), "no group in two steps"
        for step, ids in zip(epoch.steps, held, strict=True):
            assert len(step.rows) == np.isin(groups, list(ids)).sum(), "and none in parts"


def whole(rows: int) -> Experience:
    batch = TokenBatch.from_sequences([np.arange(2, dtype=np.int32)] * rows, [np.arange(3, dtype=np.int32)] * rows)
    return Experience([], batch, torch.ones(3 * rows, dtype=torch.bool), {}, 0.0, {})


def test_the_order_is_new_in_each_pass_and_the_same_for_the_same_seed() -> None:
    first, again, other = (
        [[step.rows.tolist() for step in epoch.steps] for epoch in draw_epochs(whole(40), 2, 4, seed)]
        for seed in ((7, 3), (7, 3), (7, 4))
    )
    assert first == again
    assert first != other
    assert first[0] != first[1]


def test_a_batch_without_any_reward_takes_no_step() -> None:
    nothing = Experience([], whole(4).batch, torch.zeros(12, dtype=torch.bool), {}, 0.0, {})
    assert [list(epoch.steps) for epoch in draw_epochs(nothing, 2, 2, (0, 0))] == [[], []]


def test_sums_over_tokens_become_means() -> None:
    metrics = StepMetrics()
    metrics.add("policy", {"policy/clipfrac_avg": 6.0, "grad_norm": 2.0}, total_weight=12.0)
    assert metrics.means() == {"policy/clipfrac_avg": 0.5, "grad_norm/policy": 2.0}


def test_metrics_are_means_over_the_steps_that_had_them() -> None:
    metrics = StepMetrics()
    metrics.add("policy", {"loss": 9.0, "loss/policy_avg": 1.0, "grad_norm": 2.0})
    metrics.add("policy", {"loss": 9.0, "loss/policy_avg": 2.0, "grad_norm": 4.0})
    metrics.add("critic", {"loss": 9.0, "loss/value_avg": 5.0, "grad_norm": 8.0})
    assert metrics.means() == {
        "loss/policy_avg": 1.5,
        "grad_norm/policy": 3.0,
        "loss/value_avg": 5.0,
        "grad_norm/critic": 8.0,
    }


def test_the_cost_critic_has_names_of_its_own() -> None:
    metrics = StepMetrics()
    metrics.add("critic", {"loss/value_avg": 1.0, "val/mean": 2.0, "learning_rate": 3.0})
    metrics.add("cost_critic", {"loss/value_avg": 4.0, "val/mean": 5.0, "learning_rate": 6.0})
    assert metrics.means() == {
        "loss/value_avg": 1.0,
        "val/mean": 2.0,
        "learning_rate/critic": 3.0,
        "loss/cost_value_avg": 4.0,
        "val/cost_mean": 5.0,
        "learning_rate/cost_critic": 6.0,
    }

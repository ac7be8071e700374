"""Choices between clips: the paper's formula in plain loops, what holds for all numbers, and the schedules."""

import math

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_batches import choice_batch
from test_loss_oracles import assert_numerical_gradient

from rlhf_ray.algorithms.clip_preferences import (
    ClipPreferenceLoss,
    adapted_l2,
    choice_variance,
    comparisons_due,
    log_preferences,
)

sums = st.floats(-1e4, 1e4)
floors = st.floats(0, 0.99)


@pytest.mark.parametrize("floor", [0.0, 0.1, 0.5])
def test_the_loss_equals_loops_and_its_differences(floor: float) -> None:
    batch = choice_batch()
    loss, metrics, grad = batch.run(ClipPreferenceLoss(floor))

    def value() -> float:
        rows = zip(*(column.tolist() for column in (*batch.outputs.values(), *batch.rows.values())), strict=True)
        # Three steps in each clip: only their sum counts.
        return sum(
            weight * oracle.clip_choice([left / 2, left / 4, left / 4], [right, 1.0, -1.0], share, floor)
            for left, right, weight, share in rows
        )

    assert loss.item() == pytest.approx(value(), rel=1e-12)
    assert_numerical_gradient(batch, grad, value)
    agreed = [0.5 + (share - 0.5) * math.copysign(1, left - right) for left, right, share in _decided(batch)]
    assert float(metrics["accuracy"]) == pytest.approx(sum(w * a for w, a in zip(_weights(batch), agreed, strict=True)))


def _decided(batch: object) -> list[tuple[float, float, float]]:
    left, right = (batch.outputs[side].tolist() for side in ("left", "right"))  # type: ignore[attr-defined]
    return list(zip(left, right, batch.rows["left_share"].tolist(), strict=True))  # type: ignore[attr-defined]


def _weights(batch: object) -> list[float]:
    return batch.rows["weight"].tolist()  # type: ignore[attr-defined]


@settings(deadline=None)
@given(difference=sums, floor=floors)
def test_both_choices_are_certain_together_and_none_is_impossible(difference: float, floor: float) -> None:
    left, right = log_preferences(torch.tensor([difference], dtype=torch.float64), floor)
    assert float(left.exp() + right.exp()) == pytest.approx(1, abs=1e-12)
    if floor > 0:
        assert min(float(left), float(right)) >= math.log(floor) - math.log(2) - 1e-12
    swapped_right, swapped_left = log_preferences(torch.tensor([-difference], dtype=torch.float64), floor)
    assert (float(left), float(right)) == (float(swapped_left), float(swapped_right))


@settings(deadline=None)
@given(left=sums, right=sums, share=st.sampled_from([0.0, 0.5, 1.0]), floor=st.floats(0.01, 0.99))
def test_loss_and_gradient_are_bounded_however_wrong_a_predictor_is(
    left: float, right: float, share: float, floor: float
) -> None:
    leaf = torch.tensor([left], dtype=torch.float64, requires_grad=True)
    columns = {"weight": torch.ones(1, dtype=torch.float64), "left_share": torch.tensor([share], dtype=torch.float64)}
    outputs = {"left": leaf, "right": torch.tensor([right], dtype=torch.float64)}
    loss, _ = ClipPreferenceLoss(floor)(outputs, columns)
    (grad,) = torch.autograd.grad(loss, leaf)
    assert 0 <= loss.item() <= math.log(2 / floor) + 1e-9
    assert math.isfinite(float(grad))
    assert abs(float(grad)) <= 1
    # A choice against what is predicted pulls towards it, never away.
    if share != 0.5:
        assert float(grad) * (1 if share == 1 else -1) <= 0


@settings(deadline=None)
@given(st.lists(sums, min_size=2, max_size=6), floors)
def test_members_that_agree_ask_nothing(values: list[float], floor: float) -> None:
    differences = torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, 2).clone()
    differences[:, 1] = values[0]
    variance = choice_variance(differences, floor)
    chances = [(1 - floor) * oracle.sigmoid(value) + floor / 2 for value in values]
    mean = sum(chances) / len(chances)
    assert float(variance[0]) == pytest.approx(sum((c - mean) ** 2 for c in chances) / len(chances), abs=1e-12)
    assert float(variance[1]) == pytest.approx(0, abs=1e-12)


def test_l2_follows_the_ratio_of_the_losses_of_each_member() -> None:
    ones = torch.ones(4)
    moved = adapted_l2(ones * 0.01, ones, torch.tensor([1.0, 1.2, 1.5, 1.6]))
    assert moved.tolist() == pytest.approx([0.01 / 1.2, 0.01, 0.01, 0.012])


@settings(deadline=None)
@given(
    steps=st.lists(st.integers(0, 2_000_000), min_size=2, max_size=20).map(sorted),
    total=st.integers(1, 1_000_000),
    budget=st.integers(1, 5_000),
    first=st.floats(0, 1),
    halving=st.floats(1, 1e7),
)
def test_comparisons_never_become_fewer_and_end_at_the_budget(
    steps: list[int], total: int, budget: int, first: float, halving: float
) -> None:
    due = [comparisons_due(step, total, budget, first, halving) for step in (0, *steps, total)]
    assert due[0] == round(budget * first)
    assert due[-1] == budget
    assert due[:-1] == sorted(due[:-1])
    assert max(due) == budget


def test_the_rate_of_comparisons_halves_where_it_is_said_to() -> None:
    due = [comparisons_due(step, 400_000, 1_000_000, 0.25, 100_000) for step in (0, 1000, 100_000, 101_000)]
    assert (due[3] - due[2]) / (due[1] - due[0]) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("floor", [-0.1, 1.0, math.nan])
def test_a_floor_that_is_no_share_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="error_floor must be at least 0 and below 1"):
        ClipPreferenceLoss(floor)

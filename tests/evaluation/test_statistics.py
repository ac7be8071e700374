"""Intervals hold the truth as often as they claim."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.evaluation.statistics import NOTHING, bootstrap_mean, bootstrap_ratio, distinct_n, mean, proportion


def test_wilson_equals_the_published_example():
    # Newcombe (1998), table I: 81 of 263 and 0 of 20, method 3 (Wilson's score interval).
    estimate = proportion(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    none = proportion(0, 20)
    assert (none.low, round(none.high, 4)) == (0.0, 0.1611)


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0.5, 0.99))
def test_wilson_stays_within_bounds_and_mirrors(count, share, confidence):
    wins = share * count
    estimate = proportion(wins, count, confidence)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    mirrored = proportion(count - wins, count, confidence)
    assert mirrored.low == pytest.approx(1 - estimate.high, abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_wilson_covers_the_truth(share):
    wins = np.random.default_rng(0).binomial(40, share, 2000)
    inside = [proportion(int(won), 40).low <= share <= proportion(int(won), 40).high for won in wins]
    assert 0.92 < np.mean(inside) < 0.98


def test_bootstrap_covers_the_truth_and_minds_groups():
    generator = np.random.default_rng(1)
    inside = 0
    for seed in range(150):
        values = generator.normal(2.0, 1.0, 60).tolist()
        estimate = bootstrap_mean(values, seed=seed)
        inside += estimate.low <= 2.0 <= estimate.high
    assert 0.88 < inside / 150 < 0.99
    # Ten copies of each answer are no more evidence than one.
    values = generator.normal(0.0, 1.0, 30).tolist()
    copies = [value for value in values for _ in range(10)]
    groups = [index for index in range(30) for _ in range(10)]
    alone, grouped, naive = bootstrap_mean(values), bootstrap_mean(copies, groups), bootstrap_mean(copies)
    width = alone.high - alone.low
    assert grouped.high - grouped.low == pytest.approx(width, rel=0.15)
    assert naive.high - naive.low < width / 2
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)


@pytest.mark.parametrize(
    "one", [bootstrap_mean([1.0]), bootstrap_mean([1.0, 2.0], ["p", "p"]), bootstrap_ratio([3.0], [2]), mean([1.0])]
)
def test_one_observation_says_nothing_about_the_spread(one):
    assert math.isfinite(one.value)
    assert (one.low, one.high) == (-math.inf, math.inf)
    assert not one.has_interval
    assert "no interval" in str(one)
    assert "inf" not in str(one)
    two = bootstrap_mean([1.0, 1.0])
    assert (two.low, two.high, two.has_interval) == (1.0, 1.0, True)


def test_unknown_scores_are_left_out_and_never_zero():
    estimate = mean([1.0, None, 3.0, math.nan])
    assert (estimate.value, estimate.count) == (2.0, 2)
    assert mean([None]) is NOTHING
    assert math.isinf(mean([1.0]).high)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: proportion(3, 2),
        lambda: proportion(-1, 2),
        lambda: proportion(1, 2, confidence=95),
        lambda: bootstrap_mean([1.0, 2.0], [1]),
        lambda: distinct_n(["a"], 0),
    ],
)
def test_wrong_arguments_are_refused(wrong):
    with pytest.raises(ValueError, match=r"\d"):
        wrong()


def test_distinct_n_by_hand():
    assert distinct_n([[1, 2, 3], [1, 2]], 2) == pytest.approx(2 / 3)
    assert distinct_n(["aaaa"], 1) == 0.25
    assert distinct_n([["a", "b", "c"]], 4) == 0.0
    assert distinct_n([], 2) == 0.0


@given(st.lists(st.lists(st.integers(0, 3), max_size=8), max_size=6), st.integers(1, 3))
def test_distinct_n_counts_as_brute_force_does(responses, n):
    grams = [
        tuple(response[i : i + n]) for response in responses for i in range(len(response)) if i + n <= len(response)
    ]
    assert distinct_n(responses, n) == (len(set(grams)) / len(grams) if grams else 0.0)

"""Comparisons count each pair once, and unknown scores never."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.evaluation.statistics import (
    mean_difference,
    win_rate,
    win_rate_at_equal_length,
)

SCORE = st.none() | st.floats(-5, 5) | st.just(math.nan)


@given(st.lists(st.tuples(SCORE, SCORE), max_size=30), st.floats(0, 1))
def test_win_rate_is_fair(pairs, margin):
    mine, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    forward, backward = win_rate(mine, theirs, margin), win_rate(theirs, mine, margin)
    assert (forward.wins, forward.ties, forward.losses) == (backward.losses, backward.ties, backward.wins)
    known = [pair for pair in pairs if None not in pair and not any(map(math.isnan, pair))]
    assert forward.wins + forward.ties + forward.losses == forward.rate.count == len(known)
    if known:
        assert forward.rate.value + backward.rate.value == pytest.approx(1)


def test_win_rate_by_hand():
    result = win_rate([1.0, 2.0, 3.0, None], [0.0, 2.05, 9.0, 1.0], tie_margin=0.1)
    assert (result.wins, result.ties, result.losses) == (1, 1, 1)
    assert result.rate.value == 0.5


def test_length_does_not_decide():
    # The candidate wins where it is three times as long, and loses where lengths are alike.
    mine, theirs = [1.0] * 5 + [0.0] * 3, [0.0] * 5 + [1.0] * 3
    lengths = [(30, 10)] * 5 + [(10, 11)] * 3
    assert win_rate(mine, theirs).rate.value == 5 / 8
    assert win_rate_at_equal_length(mine, theirs, lengths).losses == 3
    assert win_rate_at_equal_length(mine, theirs, lengths).rate.count == 3


def test_mean_difference_is_paired():
    # Prompts differ far more than models do; only pairing sees the difference.
    hard = [float(10 * index) for index in range(40)]
    estimate = mean_difference([value + 1 + (index % 3) / 10 for index, value in enumerate(hard)], hard)
    assert 1.0 < estimate.low < estimate.value < estimate.high < 1.2
    assert mean_difference([1.0, None], [0.0, 0.0], groups=["a", "b"]).count == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: win_rate([1.0], []),
        lambda: mean_difference([1.0], [1.0], groups=[]),
        lambda: win_rate_at_equal_length([1.0], [1.0], []),
        lambda: win_rate_at_equal_length([1.0], [], [(1, 1)]),
    ],
)
def test_what_does_not_pair_is_refused(wrong):
    with pytest.raises(ValueError, match="1"):
        wrong()

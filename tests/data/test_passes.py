"""Passes by length within a micro-batch, and micro-batches of groups that count tokens alone."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.batches import assign, pairs_of_prompts, passes_by_length, prompt_groups

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=9)


def cost(lengths: np.ndarray, passes: list[np.ndarray], start: int) -> int:
    return sum(len(rows) * int(lengths[rows].max()) + start for rows in passes)


@given(LENGTHS, st.integers(0, 60))
@settings(deadline=None)
def test_no_other_division_by_length_costs_less(lengths: list[int], start: int) -> None:
    given_lengths = np.array(lengths)
    found = passes_by_length(given_lengths, start)
    assert sorted(np.concatenate(found).tolist()) == list(range(len(lengths)))
    order = np.argsort(-given_lengths, kind="stable")
    others = []
    for cuts in itertools.product([False, True], repeat=len(order) - 1):
        others.append(cost(given_lengths, np.split(order, np.flatnonzero(cuts) + 1), start))
    assert cost(given_lengths, found, start) == min(others)


def test_rows_of_one_length_are_one_pass() -> None:
    assert [rows.tolist() for rows in passes_by_length(np.full(5, 7), 1)] == [[0, 1, 2, 3, 4]]


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=4), min_size=1, max_size=8), st.integers(1, 120))
@settings(deadline=None)
def test_groups_stay_together_and_only_their_tokens_count(groups: list[list[int]], budget: int) -> None:
    lengths = np.array([length for group in groups for length in group])
    ids = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
    for ranks in (1, 2):
        plan = assign(lengths, ranks, budget, ids, by_length=True)
        rows = np.concatenate([rows for microbatches in plan for rows in microbatches])
        assert sorted(rows.tolist()) == list(range(len(lengths)))
        assert len({len(microbatches) for microbatches in plan}) == 1
        for microbatches in plan:
            for rows in microbatches:
                whole = set(ids[rows].tolist())
                assert sorted(rows.tolist()) == np.flatnonzero(np.isin(ids, list(whole))).tolist()
                assert len(whole) <= 1 or lengths[rows].sum() <= budget


@pytest.mark.parametrize("by_length", [False, True])
def test_padding_of_pairs(by_length: bool) -> None:
    """16 pairs of natural length: tokens of a step, padding counted, over those that there are."""
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.normal(np.log(96) - 0.32, 0.8, (50, 32))).clip(8, 512).astype(int)
    ids = np.repeat(np.arange(16), 2)
    padded = 0
    for step in lengths:
        for rows in assign(step, 1, 2048, ids, by_length=by_length)[0]:
            passes = passes_by_length(step[rows], 48) if by_length else [np.arange(len(rows))]
            padded += cost(step[rows], passes, 0)
    share = padded / lengths.sum()
    assert share < 1.13 if by_length else share > 1.35


def test_two_neighbours_of_one_prompt_are_a_pair() -> None:
    prompts = [np.array(ids) for ids in ([1, 2], [1, 2], [1, 2], [3], [1, 2], [1, 2], [1, 2], [1, 2])]
    assert pairs_of_prompts(prompts).tolist() == [0, 0, 1, 2, 3, 3, 4, 4]
    assert pairs_of_prompts(prompts[:1]).tolist() == [0]


def test_rows_of_one_prompt_are_a_group_within_the_limit() -> None:
    prompts = [np.array(ids, np.int32) for ids in ([1], [2], [1], [], [1], [2], [], [1])]
    lengths = np.array([5, 4, 5, 1, 5, 7, 1, 1], np.int32)
    assert prompt_groups(prompts, lengths, 11).tolist() == [0, 1, 0, 3, 4, 1, 6, 4]
    assert prompt_groups(prompts, lengths, 4).tolist() == list(range(8))

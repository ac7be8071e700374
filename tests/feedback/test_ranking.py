"""The rules of ranking and the measures of agreement."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.errors import BadInput
from rlhf_ray.feedback.labelling.agreement import agreement, kendall_w, krippendorff_alpha
from rlhf_ray.feedback.labelling.assignment import annotator_name
from rlhf_ray.feedback.labelling.ranking import (
    LONGEST_REASON,
    Conflict,
    Draft,
    check_draft,
    conflicts,
    dense,
    names_as_shown,
    order_line,
    shown_order,
    unranked,
)
from tests.feedback.labelling_cases import draft

RANKS = st.lists(st.integers(1, 9), min_size=2, max_size=9).map(lambda ranks: [min(r, len(ranks)) for r in ranks])


@given(RANKS)
def test_saved_ranks_keep_the_order_and_have_no_gaps(ranks: list[int]) -> None:
    saved = dense(ranks)
    assert set(saved) == set(range(max(saved) + 1))
    for i, j in itertools.combinations(range(len(ranks)), 2):
        assert (ranks[i] < ranks[j]) == (saved[i] < saved[j])
        assert (ranks[i] == ranks[j]) == (saved[i] == saved[j])


def test_a_conflict_names_the_answer_that_holds_the_rank() -> None:
    assert conflicts([2, 1, 2, None, 2], shown=[4, 3, 2, 1, 0]) == [Conflict(2, 4, 2), Conflict(0, 4, 2)]
    assert conflicts([1, 2, None], shown=[0, 1, 2]) == []


def test_the_order_is_shown_as_it_will_be_saved() -> None:
    assert order_line([2, 1, 2], ["C", "B", "A"]) == "B > A = C"
    assert order_line([None, 1, None], ["A", "B", "C"]) == "B ? A, C"
    assert order_line([None, None], ["B", "A"]) == "? A, B"
    assert unranked([None, 1, None]) == [0, 2]


def test_incomplete_rankings_are_not_saved() -> None:
    with pytest.raises(BadInput, match="1 of 3 answers have no rank"):
        dense([1, None, 2])


def test_answers_stand_in_another_order_for_each_annotator_and_the_same_at_each_visit() -> None:
    orders = {tuple(shown_order("key", f"annotator {n}", 4, seed=0)) for n in range(60)}
    assert len(orders) > 15
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert shown_order("key", "anna", 9, 0) == shown_order("key", "anna", 9, 0)
    first = [shown_order(f"key {n}", "anna", 2, 0)[0] for n in range(400)]
    assert 160 < sum(first) < 240


def test_letters_follow_the_page() -> None:
    assert names_as_shown([2, 0, 1]) == ["B", "C", "A"]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (draft(1, 2), "2 ranks for 3 answers"),
        (draft(1, 2, 4), "between 1 and 3"),
        (draft(0, 1, 2), "between 1 and 3"),
        (Draft((1, 2, 3), (8, None, None), ((), (), ())), "between 1 and 7"),
        (Draft((1, 2, 3), (None,) * 3, (("rude",), (), ())), "no flag is named 'rude'"),
        (draft(1, 2, 3, reason="x" * (LONGEST_REASON + 1)), "at most 20000"),
    ],
)
def test_what_no_page_offers_is_refused(sent: Draft, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        check_draft(sent, 3)


@pytest.mark.parametrize("name", ["", "  ", "x" * 101, "a\nb", "a\x00b", "\u202eanna"])
def test_names_that_cannot_be_told_apart_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match="name"):
        annotator_name(name)


def test_names_are_kept_in_one_form() -> None:
    assert annotator_name(" Zoe\u0308 ") == "Zoë"
    assert annotator_name("张三") == "张三"


# Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), the example with missing data.
CODERS = [
    "1 2 3 3 2 1 4 1 2 - - -",
    "1 2 3 3 2 2 4 1 2 5 - 3",
    "- 3 3 3 2 3 4 2 2 5 1 -",
    "1 2 3 3 2 4 4 1 2 5 1 -",
]


def test_alpha_of_the_published_example() -> None:
    columns = zip(*(row.split() for row in CODERS), strict=True)
    units = [[int(value) for value in column if value != "-"] for column in columns]
    assert krippendorff_alpha(units) == pytest.approx(0.815, abs=5e-4)


def test_alpha_knows_nothing_where_all_values_are_the_same() -> None:
    assert math.isnan(krippendorff_alpha([[1, 1], [1, 1]]))


def test_kendall_w() -> None:
    assert kendall_w([[0, 1, 2]] * 3) == pytest.approx(1)
    assert kendall_w([[0, 1, 2], [2, 1, 0]]) == pytest.approx(0)
    # Siegel and Castellan 1988, p. 266: six applicants, three interviewers.
    assert kendall_w([[1, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1]]) == pytest.approx(0.162, abs=1e-3)
    assert math.isnan(kendall_w([[0, 0], [0, 0]]))


def test_agreement_counts_decided_pairs_alone() -> None:
    found = agreement([[[0, 1, 2], [0, 2, 1]], [[0, 0, 1], [1, 0, 2]], [[0, 1, 2]]])
    assert found.items == 2
    # Of the first prompt 2 of 3 pairs agree; of the second the tie decides nothing, the other 2 agree.
    assert found.pairs == 5
    assert found.pairwise == pytest.approx(4 / 5)


def test_no_overlap_is_no_agreement() -> None:
    nothing = agreement([[[0, 1]]])
    assert (nothing.items, nothing.pairs) == (0, 0)
    assert math.isnan(nothing.pairwise)
    assert math.isnan(nothing.alpha)


@given(st.lists(st.permutations(range(4)), min_size=2, max_size=4))
def test_the_same_order_by_all_is_perfect_agreement(orders: list[list[int]]) -> None:
    found = agreement([[order, order] for order in orders])
    assert found.pairwise == 1
    assert found.kendall_w == pytest.approx(1)
    assert found.alpha == pytest.approx(1)

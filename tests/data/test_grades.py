"""Margins of pairs and grades of lists, and the rows that contradict themselves."""

from typing import Any

import pytest

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.columns import ranking_of
from rlhf_ray.data.rows import RankedRow, grades_of, ranked_batch
from rlhf_ray.data.tokenization import Ids

PAIR = {"prompt": "p", "chosen": "good", "rejected": "bad"}
LIST = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [1, 0, 1]}


def test_a_margin_is_the_difference_of_grades() -> None:
    grades = grades_of(ranking_of(PAIR | {"margin": 0.5}))
    assert grades is not None
    assert grades[0] - grades[1] == 0.5
    turned = grades_of(ranking_of({"prompt": "p", "responses": ["bad", "good"], "ranks": [1, 0], "margin": 2}))
    assert turned is not None
    assert turned.tolist() == [0, 2]
    listed = grades_of(ranking_of(LIST | {"grades": [1, 3.5, 0]}))
    assert listed is not None
    assert listed.tolist() == [1, 3.5, 0]
    assert grades_of(ranking_of(PAIR)) is None
    assert grades_of(ranking_of(PAIR | {"margin": None})) is None


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (PAIR | {"margin": "large"}, "`margin` must be a number"),
        (PAIR | {"margin": -1.0}, "at least 0, not -1.0"),
        (PAIR | {"margin": float("nan")}, "at least 0, not nan"),
        (PAIR | {"margin": True}, "`margin` must be a number"),
        (LIST | {"margin": 1.0}, "`margin` belongs to a pair, this row has 3 responses; give `grades`"),
        (LIST | {"grades": [1, 2]}, "2 grades for 3 responses"),
        (LIST | {"grades": [1, 2, None]}, "`grades` must be a list of numbers"),
        (LIST | {"grades": [4, 3, 1]}, "rank 0 has grade 3, one of rank 1 has 4"),
    ],
)
def test_rows_that_contradict_themselves(row: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRow, match=words):
        grades_of(ranking_of(row))


def test_a_batch_has_grades_if_one_of_its_rankings_has() -> None:
    import numpy as np

    def ranked(*grades: float) -> RankedRow:
        texts: tuple[Ids, ...] = (np.array([1, 2], np.int32), np.array([3], np.int32))
        return RankedRow(texts, np.array([0, 1], np.int32), np.array(grades, np.float32) if grades else None)

    graded = ranked_batch([ranked(), ranked(0.5, 0.0)]).grades
    assert graded is not None
    assert graded.tolist() == [0, 0, 0.5, 0]
    assert ranked_batch([ranked(), ranked()]).grades is None

"""Several sources together, and failures past a threshold."""

import math

import pytest

from rlhf_ray.scoring.source import Failure, FailureTally, Scores, TooManyFailures, combine


def test_combine_weighs_by_name():
    nan = math.nan
    totals = combine(
        {"style": [1.0, None, 2.0, None, nan], "length": [10.0, 10.0, nan, None, None]}, {"length": 0.1, "style": 2.0}
    )
    assert totals[:2] == [3.0, 1.0]
    assert all(math.isnan(total) for total in totals[2:]), "a failure, or no source at all, is not a zero"


def batch(rows, failed=0, kind="raised"):
    failures = [Failure(kind, f"{kind} somewhere", tuple(range(failed)))] if failed else []
    return Scores([math.nan] * failed + [1.0] * (rows - failed), failures)


def test_one_bad_batch_does_not_end_a_run_but_many_do():
    tally = FailureTally("reward style", allowed_share=0.1, window=100)
    tally.add(batch(10, failed=10, kind="hung"))
    for _ in range(9):
        tally.add(batch(10))
    tally.add(batch(10, failed=10))
    for _ in range(9):
        tally.add(batch(10))
    tally.add(batch(10, failed=5))
    with pytest.raises(TooManyFailures, match=r"reward style: scoring failed for 11 of the last 100 samples") as caught:
        tally.add(batch(10, failed=6, kind="hung"))
    assert "raised: raised somewhere" in str(caught.value)
    assert "hung: hung somewhere" in str(caught.value)


def test_a_source_that_never_works_stops_the_job_at_once():
    with pytest.raises(TooManyFailures):
        FailureTally("style", allowed_share=0.1).add(batch(64, failed=64))

"""Held-out evaluation names its metrics as training does, and keeps order."""

import math

import numpy as np
import pytest

from rlhf_ray.data.records import PromptRecord, WeightSpan
from rlhf_ray.evaluation.held_out import evaluate
from rlhf_ray.tracking.names import describe
from tests.samples import make_sample


def prompt(name):
    return PromptRecord(prompt_id=name, prompt=name, prompt_ids=np.array([1], np.int32))


def sample(name, index, length, finish="stop"):
    versions = [WeightSpan(0, length, 1)]
    return make_sample(
        length, name, index, prompt=name, response="x" * length, weight_versions=versions, finish_reason=finish
    )


def test_metrics_and_order():
    answers = [sample("b", 0, 4, "length"), sample("a", 1, 2), sample("a", 0, 2)]
    asked = []

    def score(samples):
        asked.extend((one.prompt_id, one.index) for one in samples)
        return {"quality": [1.0, 2.0, 6.0], "style": [None, 1.0, None]}

    result = evaluate([prompt("a"), prompt("b")], lambda _: answers, score, {"quality": 1.0, "style": 0.5})
    assert asked == [("a", 0), ("a", 1), ("b", 0)]
    assert result.scores == [1.0, 2.5, 6.0]
    assert result.metrics["reward"] == pytest.approx(9.5 / 3)
    assert result.metrics["rewards/style/mean"] == 1.0
    assert "cost" not in result.metrics
    assert result.metrics["completions/mean_length"] == pytest.approx(8 / 3)
    assert result.metrics["completions/clipped_ratio"] == pytest.approx(1 / 3)
    # 0 1 | 0 1 | 0 1 2 3: five bigrams, three different ones.
    assert result.metrics["completions/distinct_2"] == pytest.approx(3 / 5)
    assert all(describe(name).meaning for name in result.logged())
    assert set(result.logged()) == {f"eval_{name}" for name in result.metrics}


def test_a_failed_reward_is_no_zero():
    scores = {"quality": [1.0, math.nan], "style": [1.0, 1.0]}
    result = evaluate(
        [prompt("a")],
        lambda _: [sample("a", 0, 2), sample("a", 1, 2)],
        lambda _: scores,
        {"quality": 1.0, "style": 1.0},
    )
    assert result.scores == [2.0, None]
    assert result.metrics["reward"] == 2.0
    assert result.metrics["rewards/quality/mean"] == 1.0


def test_costs_are_no_part_of_the_reward():
    answers = [sample("a", 0, 2), sample("a", 1, 2), sample("a", 2, 2)]

    def score(samples):
        return {"quality": [1.0, 2.0, 3.0], "harm": [0.5, None, math.nan]}

    result = evaluate([prompt("a")], lambda _: answers, score, {"quality": 1.0}, {"harm": 2.0})
    assert result.scores == [1.0, 2.0, 3.0]
    assert result.metrics["cost"] == 1.0
    assert describe("eval_cost").meaning

"""The filter of `rlhf generate`: what costs too much does not go out, and rows say so."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rlhf_ray.config.jobs.inference import SafetyConfig
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.data.records import Sample
from rlhf_ray.jobs.inference.safety import SafetyFilter
from rlhf_ray.scoring.source import Failure, FailureTally, Scores, TooManyFailures
from tests.samples import make_sample

COSTS = {"good": -1.0, "edge": 0.5, "bad": 2.0, "worse": 9.0, "other": None, "broken": float("nan")}


def sample(prompt_id: str, index: int, response: str) -> Sample:
    return make_sample(1, prompt_id, index, seed=index, prompt="p", response=response)


@dataclass
class Pending:
    tally: FailureTally
    scores: Scores

    def result(self) -> dict[str, list[float | None]]:
        self.tally.add(self.scores)
        return {"cost": self.scores.values}


class Sources:
    """Costs by the answer's first word, in place of actors."""

    def __init__(self, failed_scores: float = 1.0) -> None:
        self.tallies = {"cost": FailureTally("cost", failed_scores, window=4)}
        self.judged: list[str] = []

    def submit(self, samples: Sequence[Sample]) -> Any:
        self.judged += [one.response for one in samples]
        values = [COSTS[one.response.split()[0]] for one in samples]

        unknown = tuple(row for row, value in enumerate(values) if value is not None and math.isnan(value))
        failures = [Failure("raised", "no judgement", unknown)] if unknown else []
        return Pending(self.tallies["cost"], Scores(values, failures))


def guard(groups: list[list[str]], later: Iterable[dict[str, list[str]]] = (), **settings: Any) -> list[Any]:
    """Rows after the filter; `later` has the answers of each further round, by prompt."""
    rounds = list(later)
    sources = Sources(settings.pop("failed_scores", 1.0))

    def draw_again(ids: Sequence[str], count: int, number: int) -> Iterable[list[Sample]]:
        for prompt_id in ids:
            answers = rounds[number - 1].pop(prompt_id)
            assert len(answers) == count, "as many are drawn as are missing"
            yield [sample(prompt_id, index, text) for index, text in enumerate(answers)]

    cost = FunctionReward(name="cost", function="cost.py:f")
    safety = SafetyConfig(cost=cost, **{"threshold": 0.5, **settings})
    one = SafetyFilter(safety, sources, draw_again)  # type: ignore[arg-type]
    drawn = ([sample(str(p), i, text) for i, text in enumerate(group)] for p, group in enumerate(groups))
    found = [row for group in one.guard(drawn, window=2) for row in group]
    one.check_all()
    assert not any(rounds), "nothing is left undrawn"
    return [(row.sample.prompt_id, row.sample.index, row.sample.response, *row.columns().values()) for row in found]


def test_refused_answers_are_empty_and_keep_their_cost() -> None:
    assert guard([["good a", "bad b"], ["edge c"], ["other d"]]) == [
        ("0", 0, "good a", -1.0, "passed", 1),
        ("0", 1, "", 2.0, "refused", 1),
        ("1", 0, "edge c", 0.5, "passed", 1),
        ("2", 0, "other d", None, "passed", 1),
    ]


def test_replaced_answers_have_the_text_of_the_config() -> None:
    rows = guard([["bad a"], ["good b"]], action="replace", replacement="换个话题吧。")
    assert rows == [("0", 0, "换个话题吧。", 2.0, "replaced", 1), ("1", 0, "good b", -1.0, "passed", 1)]


def test_answers_are_drawn_again_until_one_passes_or_the_last_is_refused() -> None:
    rows = guard(
        [["bad a", "good b", "worse c"], ["bad d"], ["bad e"]],
        [{"0": ["bad f", "good g"], "1": ["good h"], "2": ["good j"]}, {"0": ["worse i"]}],
        action="resample",
        resamples=2,
    )
    assert rows == [
        ("0", 0, "", 9.0, "refused", 3),
        ("0", 1, "good b", -1.0, "passed", 1),
        ("0", 2, "good g", -1.0, "resampled", 2),
        ("1", 0, "good h", -1.0, "resampled", 2),
        ("2", 0, "good j", -1.0, "resampled", 2),
    ]


def test_what_could_not_be_judged_does_not_go_out() -> None:
    assert guard([["broken a"]]) == [("0", 0, "", None, "refused", 1)]


def test_too_many_unjudged_answers_end_the_job() -> None:
    with pytest.raises(TooManyFailures, match="no judgement"):
        guard([["broken a"], ["good b"]], failed_scores=0.1)


def test_the_weight_of_the_cost_counts() -> None:
    cost = FunctionReward(name="cost", function="cost.py:f", weight=-1)
    one = SafetyFilter(SafetyConfig(cost=cost), Sources(), lambda *_: [])  # type: ignore[arg-type]
    [[first], [second]] = one.guard(iter([[sample("0", 0, "good")], [sample("1", 0, "bad")]]), window=8)
    assert (first.outcome, first.cost) == ("refused", 1.0)
    assert second.outcome == "passed"

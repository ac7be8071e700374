"""The figures of a comparison, as `summary.json` holds them and the page shows them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from rlhf_ray.config.rewards import ORACLE, TOTAL_COLUMN
from rlhf_ray.evaluation.answers import ModelResult
from rlhf_ray.evaluation.statistics import (
    Estimate,
    bootstrap_mean,
    bootstrap_ratio,
    distinct_n,
    is_known,
    mean_difference,
    win_rate_at_equal_length,
)
from rlhf_ray.evaluation.verdicts import Judgement
from rlhf_ray.tracking.records import json_value

GIB = 2**30


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model's figures; None where they were not asked for. Intervals are bootstraps over prompts, at 95 %."""

    path: str
    answers: int
    reward: Estimate | None
    oracle: Estimate | None
    sources: dict[str, Estimate]
    kl: Estimate | None
    """KL to the reference of a whole answer, in nats: mean log-ratio over the model's own answers."""
    kl_per_token: float | None
    length: Estimate
    """Tokens of an answer."""
    cut: float
    """Share of answers that were cut at the longest length."""
    distinct_1: float
    distinct_2: float
    perplexity: Estimate | None
    """Of a token of the held-out texts."""
    tax: Estimate | None
    """Alignment tax: loss on a token of the held-out texts above the baseline's, in nats."""
    reward_gain: Estimate | None
    """Mean difference of rewards to the baseline's on the same prompts."""
    oracle_gain: Estimate | None
    reward_wins_at_equal_length: Estimate | None
    """Win rate by reward over pairs of similar length."""
    seconds: float | None
    peak_memory_gib: float | None


@dataclass(frozen=True, slots=True)
class Summary:
    """Everything that a comparison found."""

    baseline: str
    reference: str | None
    models: dict[str, ModelFigures]
    win_rates: dict[str, dict[str, Judgement]] = field(default_factory=dict)
    """By judge and model, against the baseline."""


def summarise(
    results: Sequence[ModelResult],
    baseline: str,
    reference: str | None,
    win_rates: Mapping[str, Mapping[str, Judgement]],
) -> Summary:
    """Compute the figures of all models, which answered the same prompts in one order."""
    base = next(result for result in results if result.name == baseline)
    figures = {result.name: _figures(result, base) for result in results}
    return Summary(baseline, reference, figures, {judge: dict(rates) for judge, rates in win_rates.items()})


def as_json(summary: Summary) -> dict[str, Any]:
    """Return the summary as JSON has it; what is no number is null."""
    found: dict[str, Any] = json_value(asdict(summary))
    return found


def _figures(result: ModelResult, base: ModelResult) -> ModelFigures:
    tokens = [answer.response_ids for answer in result.answers]
    is_base = result is base
    divergence = result.divergence
    return ModelFigures(
        path=result.path,
        answers=len(result.answers),
        reward=_mean(result, TOTAL_COLUMN),
        oracle=_mean(result, ORACLE),
        sources={name: bootstrap_of(result, name) for name in result.scores if name not in (TOTAL_COLUMN, ORACLE)},
        kl=None if divergence is None else bootstrap_mean(divergence, result.prompts),
        kl_per_token=None if divergence is None else sum(divergence) / max(1, sum(result.lengths)),
        length=bootstrap_mean([float(length) for length in result.lengths], result.prompts),
        cut=sum(answer.finish_reason == "length" for answer in result.answers) / max(1, len(result.answers)),
        distinct_1=distinct_n(tokens, 1),
        distinct_2=distinct_n(tokens, 2),
        perplexity=_perplexity(result),
        tax=None if is_base else _tax(result, base),
        reward_gain=None if is_base else _gain(result, base, TOTAL_COLUMN),
        oracle_gain=None if is_base else _gain(result, base, ORACLE),
        reward_wins_at_equal_length=None if is_base else _fair_wins(result, base),
        seconds=result.seconds,
        peak_memory_gib=None if result.peak_memory is None else result.peak_memory / GIB,
    )


def bootstrap_of(result: ModelResult, source: str) -> Estimate:
    """Estimate the mean of a source's known scores, with an interval over prompts."""
    known = [(score, prompt) for score, prompt in zip(result.scores[source], result.prompts, strict=True)]
    kept = [(score, prompt) for score, prompt in known if is_known(score)]
    return bootstrap_mean([score for score, _ in kept], [prompt for _, prompt in kept])


def _mean(result: ModelResult, source: str) -> Estimate | None:
    return bootstrap_of(result, source) if source in result.scores else None


def _gain(result: ModelResult, base: ModelResult, source: str) -> Estimate | None:
    if source not in result.scores:
        return None
    return mean_difference(result.scores[source], base.scores[source], result.prompts)


def _fair_wins(result: ModelResult, base: ModelResult) -> Estimate | None:
    if TOTAL_COLUMN not in result.scores:
        return None
    lengths = list(zip(result.lengths, base.lengths, strict=True))
    return win_rate_at_equal_length(result.scores[TOTAL_COLUMN], base.scores[TOTAL_COLUMN], lengths).rate


def _perplexity(result: ModelResult) -> Estimate | None:
    if result.texts is None:
        return None
    loss = bootstrap_ratio(-result.texts.logprobs, result.texts.tokens)
    low, middle, high = (math.exp(min(bound, 700.0)) for bound in (loss.low, loss.value, loss.high))
    return Estimate(middle, low, high if loss.has_interval else math.inf, loss.count)


def _tax(result: ModelResult, base: ModelResult) -> Estimate | None:
    """Compare losses on the texts that both models read; None where their tokens differ."""
    mine, theirs = result.texts, base.texts
    if mine is None or theirs is None or not np.array_equal(mine.tokens, theirs.tokens):
        return None
    return bootstrap_ratio(theirs.logprobs - mine.logprobs, mine.tokens)

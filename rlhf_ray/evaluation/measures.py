"""The figures of a comparison: what each means, how it is written, and what a reader wants to know first of a model."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhf_ray.evaluation.statistics import NO_INTERVAL, Estimate
from rlhf_ray.evaluation.summary import ModelFigures, Summary
from rlhf_ray.tracking.panels import short_number
from rlhf_ray.tracking.report import duration
from rlhf_ray.tracking.text import one_line

DIGITS = 3
"""Of the largest value; more would be noise at the size of most evaluations."""
SMALLEST, LARGEST = 1e-3, 1e4
"""Between these, numbers stand in plain decimals."""
LONGEST_JUDGE = 40


@dataclass(frozen=True, slots=True)
class Measure:
    """A line of the table: a figure of each model."""

    title: str
    meaning: str
    of: Callable[[ModelFigures], Estimate | float | None]
    show: Callable[[float], str] | None = None
    """None: as numbers with the same decimals in all models."""
    bars: str | None = None
    """Unit of its bars; None: only in the table."""
    better: Literal["", "↑", "↓"] = ""
    """Whether more or less of it is better; empty: neither by itself."""


MEASURES = (
    Measure("reward", "mean weighted sum of the reward sources", lambda one: one.reward, bars="", better="↑"),
    Measure("oracle", "mean of the judgement that no training saw", lambda one: one.oracle, bars="", better="↑"),
    Measure("KL", "to the reference, of a whole answer", lambda one: one.kl, bars="nats"),
    Measure("KL of a token", "the same, of each token", lambda one: one.kl_per_token),
    Measure(
        "reward gain", "mean difference to the baseline on the same prompts", lambda one: one.reward_gain, better="↑"
    ),
    Measure("oracle gain", "likewise, of the oracle", lambda one: one.oracle_gain, better="↑"),
    Measure(
        "wins at equal length",
        "by reward, where the longer answer is at most a quarter longer",
        lambda one: one.reward_wins_at_equal_length,
        better="↑",
    ),
    Measure("length", "tokens of an answer", lambda one: one.length, bars="tokens"),
    Measure("cut", "share of answers that did not end by themselves", lambda one: one.cut, better="↓"),
    Measure("distinct-1", "different tokens over all tokens", lambda one: one.distinct_1),
    Measure("distinct-2", "different pairs of tokens over all pairs", lambda one: one.distinct_2, bars="share"),
    Measure("perplexity", "of a token of held-out texts", lambda one: one.perplexity, bars="", better="↓"),
    Measure(
        "alignment tax",
        "loss on held-out texts above the baseline's",
        lambda one: one.tax,
        bars="nats a token",
        better="↓",
    ),
    Measure("wall time", "of the run that made it", lambda one: one.seconds, duration, bars="", better="↓"),
    Measure("peak memory", "of that run's processes, in GiB", lambda one: one.peak_memory_gib, bars="GiB", better="↓"),
)


def measured(summary: Summary) -> list[Measure]:
    """List the measures that at least one model has."""
    return [one for one in MEASURES if any(_known(one.of(figures)) for figures in summary.models.values())]


def _known(value: Estimate | float | None) -> bool:
    return value is not None and math.isfinite(value.value if isinstance(value, Estimate) else value)


def cells(measure: Measure, summary: Summary) -> list[tuple[str, str]]:
    """Return a figure of each model and its interval."""
    values = [measure.of(figures) for figures in summary.models.values()]
    show = shown(measure, values)
    return [_cell(value, show) for value in values]


def _cell(value: Estimate | float | None, show: Callable[[float], str]) -> tuple[str, str]:
    if value is None or not _known(value):
        return "", ""
    if not isinstance(value, Estimate):
        return show(value), ""
    if not value.has_interval:
        return show(value.value), NO_INTERVAL
    # The reference differs from itself by nothing, for certain.
    return show(value.value), "" if value.low == value.high else f"{show(value.low)} to {show(value.high)}"


def shown(measure: Measure, values: Sequence[Estimate | float | None]) -> Callable[[float], str]:
    """Choose how the values of a measure are written: with the same decimals, so that they compare well."""
    if measure.show is not None:
        return measure.show
    known = [one.value if isinstance(one, Estimate) else one for one in values if one is not None and _known(one)]
    return same_decimals(known)


def same_decimals(values: Sequence[float]) -> Callable[[float], str]:
    """Choose how numbers that are compared are written: with as many decimals as the largest has at three digits."""
    size = max((abs(value) for value in values), default=0.0)
    if not SMALLEST <= size < LARGEST:
        return short_number
    decimals = max(0, DIGITS - 1 - math.floor(math.log10(size)))
    return lambda value: f"{value:.{decimals}f}" if value else "0"


@dataclass(frozen=True, slots=True)
class Fact:
    """One figure, and what its interval says."""

    label: str
    value: str
    tone: Literal["good", "bad", "open", ""]
    """`open`: the interval holds both; empty: neither good nor bad by itself."""

    @property
    def words(self) -> str:
        """The tone, for those who do not see colours."""
        return {"good": "better", "bad": "worse", "open": "no clear difference", "": ""}[self.tone]


@dataclass(frozen=True, slots=True)
class ModelHeadline:
    """A model against the baseline."""

    name: str
    colour: str
    facts: list[Fact]


def headlines(summary: Summary, colours: Mapping[str, str]) -> list[ModelHeadline]:
    """Make a headline for each model but the baseline."""
    found = []
    for name, figures in summary.models.items():
        if name == summary.baseline:
            continue
        facts = [
            _fact("oracle", figures.oracle_gain, 0.0, signed),
            _fact("reward", figures.reward_gain, 0.0, signed),
            *(
                _fact(f"wins by {one_line(judge, LONGEST_JUDGE)}", rates[name].outcome.rate, 0.5, percent)
                for judge, rates in summary.win_rates.items()
                if name in rates
            ),
            _fact("alignment tax", figures.tax, 0.0, signed, more_is_worse=True),
        ]
        if figures.kl is not None and math.isfinite(figures.kl.value):
            facts.append(Fact("KL", f"{same_decimals([figures.kl.value])(figures.kl.value)} nats", ""))
        found.append(ModelHeadline(name, colours[name], [fact for fact in facts if fact is not None]))
    return [one for one in found if one.facts]


def _fact(
    label: str, found: Estimate | None, even: float, show: Callable[[float], str], more_is_worse: bool = False
) -> Fact | None:
    if found is None or not found.count or not math.isfinite(found.value):
        return None
    if found.low <= even <= found.high:
        return Fact(label, show(found.value), "open")
    return Fact(label, show(found.value), "good" if (found.value > even) != more_is_worse else "bad")


def signed(value: float) -> str:
    """Write a difference with its sign."""
    return f"{'+' if value > 0 else ''}{same_decimals([value])(value)}"


def percent(share: float) -> str:
    """Write a share in per cent."""
    return f"{share:.1%}"

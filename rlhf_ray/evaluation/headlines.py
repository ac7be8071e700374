"""What a reader wants to know first of each model: is it better than the baseline, and at what price."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from rlhf_ray.evaluation.measures import same_decimals
from rlhf_ray.evaluation.statistics import Estimate
from rlhf_ray.evaluation.summary import Summary
from rlhf_ray.tracking.text import one_line

LONGEST_JUDGE = 40


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
class Headline:
    """A model against the baseline."""

    name: str
    colour: str
    facts: list[Fact]


def headlines(summary: Summary, colours: Mapping[str, str]) -> list[Headline]:
    """One for each model but the baseline."""
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
        found.append(Headline(name, colours[name], [fact for fact in facts if fact is not None]))
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
    """A difference, with its sign."""
    return f"{'+' if value > 0 else ''}{same_decimals([value])(value)}"


def percent(share: float) -> str:
    """A share."""
    return f"{share:.1%}"

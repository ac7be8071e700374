"""Estimates from samples with their confidence intervals: means, win rates between two models, how varied texts are."""

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeGuard

import numpy as np

BOOTSTRAP_SAMPLES = 2000
NO_INTERVAL = "no interval"
"""Stands for one without bounds where people read."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its confidence interval; all NaN where there was nothing to estimate from."""

    value: float
    low: float
    high: float
    count: int
    """Observations that it rests on."""

    @property
    def has_interval(self) -> bool:
        """Whether the observations say how far off the value may be; one alone does not."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        interval = f"{self.low:.3f} to {self.high:.3f}" if self.has_interval else NO_INTERVAL
        return f"{self.value:.3f} ({interval}, n = {self.count})"


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def is_known(score: float | None) -> TypeGuard[float]:
    """Tell whether there is a score: None says that it does not apply, NaN that it failed."""
    return score is not None and not math.isnan(score)


def mean(values: Sequence[float | None], confidence: float = 0.95) -> Estimate:
    """Estimate the mean with its interval by the normal approximation, without unknown scores (None, NaN)."""
    known = np.array([value for value in values if is_known(value)], dtype=np.float64)
    if not len(known):
        return NOTHING
    middle = float(known.mean())
    # One observation says nothing about the spread.
    error = float(known.std(ddof=1)) / math.sqrt(len(known)) if len(known) > 1 else math.inf
    reach = _quantile(confidence) * error
    return Estimate(middle, middle - reach, middle + reach, len(known))


def proportion(successes: float, count: int, confidence: float = 0.95) -> Estimate:
    """Estimate the share of successes with Wilson's score interval (1927), which stays within 0 and 1.

    Args:
        successes: number of successes; a tie may count as half.
        count: number of observations.
        confidence: probability with which the interval holds the true share.

    Raises:
        ValueError: successes are not between 0 and count.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes among {count} observations")
    if count == 0:
        return NOTHING
    z = _quantile(confidence)
    share = successes / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    # At 0 and at 1 the bound is the share itself, but for rounding.
    return Estimate(share, min(share, max(0.0, middle - reach)), max(share, min(1.0, middle + reach)), count)


def bootstrap_mean(
    values: Sequence[float], groups: Sequence[object] | None = None, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Estimate the mean with a percentile bootstrap interval (Efron 1979); a single group has no bounds.

    Args:
        values: observations.
        groups: which observations belong together, such as the responses to one prompt; whole groups are drawn.
        confidence: probability with which the interval holds the true mean.
        seed: of the draws; equal seeds give equal intervals.

    Raises:
        ValueError: groups are not as many as values.
    """
    if not len(values):
        return NOTHING
    keys = list(range(len(values))) if groups is None else list(groups)
    if len(keys) != len(values):
        raise ValueError(f"{len(keys)} groups for {len(values)} values")
    numbers = {key: index for index, key in enumerate(dict.fromkeys(keys))}
    member = np.array([numbers[key] for key in keys])
    sums = np.bincount(member, weights=np.asarray(values, dtype=np.float64))
    ratio = bootstrap_ratio(sums, np.bincount(member), confidence, seed)
    return Estimate(float(np.mean(values)), ratio.low, ratio.high, len(values))


def bootstrap_ratio(
    sums: Sequence[float] | np.ndarray, sizes: Sequence[float] | np.ndarray, confidence: float = 0.95, seed: int = 0
) -> Estimate:
    """Divide the sum of sums by that of sizes, with a bootstrap interval over the entries; one has no bounds.

    Args:
        sums: of each entry, such as the log-probability of a text.
        sizes: of each entry, such as its tokens; not all 0.
        confidence: probability with which the interval holds the truth.
        seed: of the draws.

    Raises:
        ValueError: the two differ in length.
    """
    if len(sums) != len(sizes):
        raise ValueError(f"{len(sums)} sums for {len(sizes)} sizes")
    if not len(sums):
        return NOTHING
    above, below = np.asarray(sums, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    value = float(above.sum() / below.sum())
    if len(above) == 1:
        # All draws of one entry are alike, as if its value were certain; it says nothing about the spread.
        return Estimate(value, -math.inf, math.inf, 1)
    # How often each entry is drawn, instead of the draws themselves.
    draws = np.random.default_rng(seed).multinomial(len(above), np.full(len(above), 1 / len(above)), BOOTSTRAP_SAMPLES)
    ratios = (draws @ above) / (draws @ below)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high), len(above))


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it lies between 0 and 1")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def distinct_n(responses: Iterable[Sequence[Hashable]], n: int = 2) -> float:
    """Divide different n-grams by all n-grams of the responses (Li et al. 2016); 0 where there are none.

    Args:
        responses: token ids, words, or texts (whose characters then count) of each response. Grams do not cross
            responses.
        n: length of a gram; at least 1.

    The value falls as more text is counted, so compare equal numbers of responses of similar length.
    """
    if n < 1:
        raise ValueError(f"n is {n}; a gram has at least one token")
    seen: set[tuple[Hashable, ...]] = set()
    count = 0
    for response in responses:
        grams = [tuple(response[start : start + n]) for start in range(len(response) - n + 1)]
        seen.update(grams)
        count += len(grams)
    return len(seen) / count if count else 0.0


@dataclass(frozen=True, slots=True)
class WinRate:
    """Outcome of paired judgements; a tie counts as half a win."""

    wins: int
    ties: int
    losses: int
    rate: Estimate


def win_rate(
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
    tie_margin: float = 0.0,
    confidence: float = 0.95,
) -> WinRate:
    """Return the share of prompts on which the candidate scores higher, with Wilson's interval.

    Args:
        candidate: its score on each prompt; unknown (None, NaN) leaves the pair out.
        baseline: the baseline's scores on the same prompts, in the same order.
        tie_margin: differences up to this are ties.
        confidence: of the interval.

    Raises:
        ValueError: the two do not have as many scores.
    """
    differences = _differences(candidate, baseline)
    wins = sum(difference > tie_margin for difference in differences)
    losses = sum(difference < -tie_margin for difference in differences)
    ties = len(differences) - wins - losses
    return WinRate(wins, ties, losses, proportion(wins + ties / 2, len(differences), confidence))


def win_rate_at_equal_length(
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
    lengths: Sequence[tuple[int, int]],
    longest_ratio: float = 1.25,
) -> WinRate:
    """Return the win rate of pairs of similar length, which a preference for length cannot decide.

    Args:
        candidate: its score on each prompt.
        baseline: the baseline's scores.
        lengths: of the candidate's and the baseline's response to each prompt, in tokens.
        longest_ratio: the longer of a pair is at most this many times the shorter.

    Raises:
        ValueError: the three do not have as many entries.
    """
    if not len(lengths) == len(candidate) == len(baseline):
        raise ValueError(f"{len(lengths)} lengths for {len(candidate)} and {len(baseline)} scores")
    kept = [index for index, pair in enumerate(lengths) if max(pair) <= longest_ratio * max(min(pair), 1)]
    return win_rate([candidate[index] for index in kept], [baseline[index] for index in kept])


def mean_difference(
    candidate: Sequence[float | None],
    baseline: Sequence[float | None],
    groups: Sequence[object] | None = None,
    confidence: float = 0.95,
) -> Estimate:
    """Estimate the mean score difference over the same prompts, with a paired bootstrap interval.

    `groups` says which pairs share a prompt; pairs that could not be judged are left out. Raises ValueError where the
    lengths differ.
    """
    if groups is not None and len(groups) != len(candidate):
        raise ValueError(f"{len(groups)} groups for {len(candidate)} scores")
    judged = [index for index, pair in enumerate(zip(candidate, baseline, strict=True)) if all(map(is_known, pair))]
    kept = None if groups is None else [groups[index] for index in judged]
    return bootstrap_mean(_differences(candidate, baseline), kept, confidence)


def _differences(candidate: Sequence[float | None], baseline: Sequence[float | None]) -> list[float]:
    if len(candidate) != len(baseline):
        raise ValueError(f"{len(candidate)} scores of the candidate for {len(baseline)} of the baseline")
    pairs = zip(candidate, baseline, strict=True)
    return [mine - theirs for mine, theirs in pairs if is_known(mine) and is_known(theirs)]

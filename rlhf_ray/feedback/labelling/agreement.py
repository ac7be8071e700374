"""How far annotators agree: shares of pairs, Kendall's W, Krippendorff's alpha."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ray.evaluation.statistics import Estimate, proportion
from rlhf_ray.feedback.labelling.labels import Label


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement over all prompts that several annotators ranked; NaN where there is nothing to measure."""

    items: int
    """Prompts with at least two rankings."""
    pairs: int
    """Pairs of answers that two annotators both decided (no tie on either side)."""
    pairwise: float
    """Share of those in which both prefer the same answer; Ouyang et al. 2022 report 0.73."""
    kendall_w: float
    """Mean of Kendall's W, with ties: 1 where all orders are the same, 0 where they have nothing in common."""
    alpha: float
    """Krippendorff's alpha of the ranks, ordinal: 1 perfect, 0 chance."""


def agreement(rankings: Iterable[Sequence[Sequence[int]]]) -> Agreement:
    """Measure agreement.

    Args:
        rankings: for each prompt the ranks of its annotators, each for the same answers in the same order.
    """
    shared = [item for item in rankings if len(item) > 1]
    same = [agrees for item in shared for agrees in _decided_pairs(item)]
    concordances = [kendall_w(item) for item in shared]
    known = [value for value in concordances if not math.isnan(value)]
    units = [[ranks[place] for ranks in item] for item in shared for place in range(len(item[0]))]
    return Agreement(
        items=len(shared),
        pairs=len(same),
        pairwise=sum(same) / len(same) if same else math.nan,
        kendall_w=sum(known) / len(known) if known else math.nan,
        alpha=krippendorff_alpha(units),
    )


def _decided_pairs(item: Sequence[Sequence[int]]) -> Iterable[bool]:
    for one, other in itertools.combinations(item, 2):
        for i, j in itertools.combinations(range(len(one)), 2):
            if one[i] != one[j] and other[i] != other[j]:
                yield (one[i] < one[j]) == (other[i] < other[j])


def kendall_w(rankings: Sequence[Sequence[int]]) -> float:
    """Compute the coefficient of concordance, corrected for ties
    (Kendall and Babington Smith 1939; Siegel 1988).

    Args:
        rankings: ranks of each annotator, for the same answers in the same order.

    Returns:
        0 to 1; NaN where every annotator ties everything.
    """
    ranks = np.array([_midranks(one) for one in rankings])
    annotators, answers = ranks.shape
    spread = float(((ranks.sum(axis=0) - annotators * (answers + 1) / 2) ** 2).sum())
    ties = sum(count**3 - count for one in rankings for count in Counter(one).values())
    largest = (annotators**2 * (answers**3 - answers) - annotators * ties) / 12
    return spread / largest if largest > 0 else math.nan


def _midranks(ranks: Sequence[int]) -> list[float]:
    """Rank from 1; tied answers share the mean of the places that they take."""
    return [sum(other < rank for other in ranks) + (sum(other == rank for other in ranks) + 1) / 2 for rank in ranks]


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float:
    """Compute alpha for ordinal values (Krippendorff, Content Analysis, 4th ed. 2018, chapter 12).

    Args:
        units: for each thing that was judged the values it got, in any order; those with one value do not count.

    Returns:
        1 for perfect agreement, 0 for chance, below 0 for less; NaN where all values are the same.
    """
    judged = [Counter(unit) for unit in units if len(unit) > 1]
    totals: Counter[int] = Counter()
    for counts in judged:
        totals.update(counts)
    pairable = totals.total()
    distance = _ordinal_distances(totals)
    expected = sum(totals[c] * totals[k] * distance[c, k] for c in totals for k in totals)
    if not expected:
        return math.nan
    observed = sum(
        counts[c] * counts[k] * distance[c, k] / (counts.total() - 1)
        for counts in judged
        for c in counts
        for k in counts
        if c != k
    )
    return 1 - (pairable - 1) * observed / expected


def _ordinal_distances(totals: Mapping[int, int]) -> dict[tuple[int, int], float]:
    """Square the number of values between two ranks, half of those at either end (Krippendorff's ordinal metric)."""
    values = sorted(totals)
    between = {}
    for low, high in itertools.product(range(len(values)), repeat=2):
        first, last = min(low, high), max(low, high)
        inner = sum(totals[value] for value in values[first : last + 1])
        ends = (totals[values[first]] + totals[values[last]]) / 2
        between[values[low], values[high]] = 0.0 if low == high else float((inner - ends) ** 2)
    return between


ALL = "all"
"""Name of the line over all classes."""


@dataclass(frozen=True, slots=True)
class CheckpointWinRate:
    """Share of prompts on which the second checkpoint (b) was preferred to the first (a)."""

    prompt_class: str
    b_wins: int
    a_wins: int
    equal: int
    rate: Estimate
    """Share of b's wins, an equal one counting half, with Wilson's interval at 95 %."""


def win_rates(labels: Iterable[Label]) -> list[CheckpointWinRate]:
    """Compute win rates over all prompts, and then for each class in the order of their names."""
    counts: dict[str, list[int]] = {ALL: [0, 0, 0]}
    for label in labels:
        a, b = label.ranks
        outcome = 0 if b < a else 1 if a < b else 2
        for name in (ALL, label.prompt_class):
            counts.setdefault(name, [0, 0, 0])[outcome] += 1
    total = counts.pop(ALL)
    return [_rate(ALL, total), *(_rate(name, counts[name]) for name in sorted(counts))]


def _rate(name: str, counts: list[int]) -> CheckpointWinRate:
    b_wins, a_wins, equal = counts
    return CheckpointWinRate(name, b_wins, a_wins, equal, proportion(b_wins + equal / 2, sum(counts)))

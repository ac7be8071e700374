"""Two models on the same prompts: who wins, and by how much."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.evaluation.statistics import Estimate, bootstrap_mean, is_known, proportion


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
    """Share of prompts on which the candidate scores higher, with Wilson's interval.

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
    """The win rate over pairs of similar length alone, which a preference for long answers cannot decide.

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
    """Mean score difference over the same prompts, with a paired bootstrap interval.

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

"""Whether a run looks as if its policy exploits the reward instead of earning it (Gao et al. 2023)."""

import statistics
from collections.abc import Mapping

from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.names import EVALUATION_PREFIX

WINDOW = 3
"""Steps at either end of a run whose means are compared: one step alone may be an outlier."""
KL_OVER_TARGET = 2.0
"""A KL of so many targets is out of the controller's hands."""
KL_PER_TOKEN = 0.5
"""Nats. Where no target is set: a policy that far from its reference writes what the reference would rarely write."""
LEAST_LENGTH = 0.6
"""Share of the first length, under which answers are stubs."""
LEAST_VARIETY = 0.6
"""Share of the first distinct-2, under which answers repeat each other."""

Sign = tuple[str, str]
"""Its kind, which stays the same from step to step, and words with its figures."""


def signs_of_over_optimisation(history: History, kl_target: float | None = None) -> list[Sign]:
    """Return what in a run's metrics looks like over-optimisation; empty where nothing does.

    Lengths and variety are those of held-out answers where the run evaluates, before its first step against after its
    newest; else those of the first and the newest steps.

    Args:
        history: the run's metrics so far.
        kl_target: KL of a response at which the coefficient aims, in nats; None where it is fixed.
    """
    found = [*_far_from_reference(history, kl_target)]
    for name, least, kind, words in (
        ("completions/mean_length", LEAST_LENGTH, "length", "answers shrank from {:.0f} to {:.0f} tokens"),
        ("completions/distinct_2", LEAST_VARIETY, "variety", "distinct-2 fell from {:.2f} to {:.2f}"),
    ):
        ends = _ends(history, name)
        if ends is not None and ends[1] < least * ends[0]:
            found.append((kind, words.format(*ends)))
    return found


class OverOptimisationWatch:
    """Sees each step's metrics, and speaks when a kind of sign appears that was not there before."""

    def __init__(self, history: History, kl_target: float | None = None) -> None:
        """Watch on from an earlier part's metrics, `history`; for `kl_target` see `signs_of_over_optimisation`."""
        self._history = history
        self._kl_target = kl_target
        self._told: set[str] = set()

    def see(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Take a step's metrics in; returns a warning that says what to do where something new speaks for it."""
        self._history.add(step, metrics)
        signs = signs_of_over_optimisation(self._history, self._kl_target)
        kinds = {kind for kind, _ in signs}
        if kinds <= self._told:
            return None
        self._told |= kinds
        reward = _ends(self._history, "reward") or _ends(self._history, "objective/scores")
        gained = f", while the reward went from {reward[0]:.2f} to {reward[1]:.2f}" if reward is not None else ""
        return (
            f"step {step}: this looks like over-optimisation of the reward: {'; '.join(words for _, words in signs)}"
            f"{gained}. Read samples.jsonl; then set or lower algorithm.kl.target, raise algorithm.kl.coefficient, "
            "lower policy.learning_rate, or go back to an earlier checkpoint"
        )


def _far_from_reference(history: History, kl_target: float | None) -> list[Sign]:
    kl = _values(history, "objective/kl")[-WINDOW:]
    if len(kl) < WINDOW:
        return []
    mean = statistics.fmean(kl)
    if kl_target is not None:
        far = mean > KL_OVER_TARGET * kl_target
        return [("KL", f"KL {mean:.1f} nats a response, target {kl_target:g}")] if far else []
    lengths = _values(history, "completions/mean_length")[-WINDOW:]
    token = mean / max(statistics.fmean(lengths), 1.0) if lengths else 0.0
    return [("KL", f"KL {mean:.1f} nats a response, {token:.2f} a token")] if token > KL_PER_TOKEN else []


def _ends(history: History, name: str) -> tuple[float, float] | None:
    """Return a metric at the start and now: of evaluations where there are two; None where too little is known."""
    evaluated = _values(history, EVALUATION_PREFIX + name)
    if len(evaluated) > 1:
        return evaluated[0], evaluated[-1]
    trained = _values(history, name)
    if len(trained) < 2 * WINDOW:
        return None
    return statistics.fmean(trained[:WINDOW]), statistics.fmean(trained[-WINDOW:])


def _values(history: History, name: str) -> list[float]:
    series = history.series.get(name)
    return [value for _, value in series.finite()] if series is not None else []

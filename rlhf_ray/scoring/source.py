"""Where rewards come from, and what it means when one does not come.

A score is a number, None where the source does not apply to a sample, and NaN where scoring failed. A failure is never
a zero: a sample with a failed score is counted and not learned from, and past a threshold the job stops.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.records import Prompt

SourceFailure = Literal["raised", "hung", "died", "wrong count", "wrong type", "not a number", "bad input"]
ServiceFailure = Literal["unreachable", "timed out", "refused", "malformed answer"]
"""What happens between a source and us only where it is a service."""
FailureKind = SourceFailure | ServiceFailure

WINDOW = 256
"""Latest samples over which failures are counted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why some samples have no score. A sample is in one failure at most."""

    kind: FailureKind
    message: str
    """What happened, where, and what to do."""
    rows: tuple[int, ...]
    """Positions of the samples in the batch."""


@dataclass(slots=True)
class Scores:
    """Scores of a batch in its order."""

    values: list[float | None]
    failures: list[Failure] = field(default_factory=list)

    @classmethod
    def failed(cls, kind: FailureKind, message: str, rows: int) -> "Scores":
        """Make a batch without any score."""
        return cls([math.nan] * rows, [Failure(kind, message, tuple(range(rows)))])


def failures_of(broken: Iterable[tuple[FailureKind, int, str]]) -> list[Failure]:
    """Return one failure of each kind, with the reason of its first sample; `broken` has kind, position and reason."""
    by_kind: dict[FailureKind, list[tuple[int, str]]] = {}
    for kind, row, reason in broken:
        by_kind.setdefault(kind, []).append((row, reason))
    return [Failure(kind, found[0][1], tuple(row for row, _ in found)) for kind, found in by_kind.items()]


class TooManyFailures(RlhfError):
    """So many samples of a batch have no score that going on would waste the run."""


class RewardSourceProtocol(Protocol):
    """Anything that scores completions."""

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Scores:
        """Score completions of prompts; `columns` are the data set's others, a list over the samples each."""
        ...

    def wake(self) -> None:
        """Be ready to score, on the source's own device."""
        ...

    def sleep(self) -> None:
        """Leave the device to others."""
        ...

    def close(self) -> None:
        """Give back what the source holds."""
        ...


class FailureTally:
    """Failures of one source among its latest samples, and when they are too many.

    Counted over several batches, so that one that hangs once does not end a run.
    """

    def __init__(
        self,
        name: str,
        allowed_share: float,
        window: int = WINDOW,
        *,
        work: str = "scoring",
        setting: str = "failed_scores",
    ) -> None:
        """Allow a share of failures within a window of samples: whole batches, and never fewer samples.

        Args:
            name: whose failures they are.
            allowed_share: what `setting` says.
            window: least samples over which failures are counted.
            work: what failed.
            setting: what to raise where failures are no harm.
        """
        self._name, self._work, self._setting = name, work, setting
        self._allowed_share = allowed_share
        self._window = window
        self._batches: deque[tuple[int, list[Failure]]] = deque()
        self.seen = 0
        """Samples since the beginning."""
        self.failed = 0
        """Samples without a score since the beginning."""
        self.reasons: dict[FailureKind, str] = {}
        """The first failure of each kind since the beginning."""

    def add(self, scores: Scores) -> None:
        """Count a batch.

        Raises:
            TooManyFailures: with the first failure of each kind.
        """
        self.seen += len(scores.values)
        self.failed += sum(len(failure.rows) for failure in scores.failures)
        for failure in scores.failures:
            self.reasons.setdefault(failure.kind, failure.message)
        self._batches.append((len(scores.values), scores.failures))
        seen = sum(rows for rows, _ in self._batches)
        while seen - self._batches[0][0] >= self._window:
            seen -= self._batches.popleft()[0]
        failures = [failure for _, batch in self._batches for failure in batch]
        failed = sum(len(failure.rows) for failure in failures)
        if failed <= self._allowed_share * max(seen, self._window):
            return
        first = {failure.kind: failure.message for failure in reversed(failures)}
        raise self._too_many(f"{failed} of the last {seen} samples", first)

    def check_all(self) -> None:
        """Judge everything since the beginning, at the end of a job that reads its rows once.

        Raises:
            TooManyFailures: with the first failure of each kind.
        """
        if self.failed > self._allowed_share * self.seen:
            raise self._too_many(f"{self.failed} of {self.seen} samples", self.reasons)

    def _too_many(self, samples: str, reasons: Mapping[FailureKind, str]) -> TooManyFailures:
        lines = "\n".join(f"  {kind}: {message}" for kind, message in reasons.items())
        return TooManyFailures(
            f"{self._name}: {self._work} failed for {samples}, more than its "
            f"{self._setting} {self._allowed_share:g} allows:\n{lines}"
        )


def combine(scores: Mapping[str, Sequence[float | None]], weights: Mapping[str, float]) -> list[float]:
    """Sum the sources that apply to each sample, by weight.

    NaN where one of them failed, and where none applies: nothing is known about such a sample.
    """
    names = list(scores)
    totals = []
    for row in zip(*(scores[name] for name in names), strict=True):
        parts = [weights[name] * value for name, value in zip(names, row, strict=True) if value is not None]
        totals.append(sum(parts) if parts else math.nan)
    return totals

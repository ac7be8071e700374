"""The filter of `rlhf generate`: answers whose cost is too high do not go out."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from rlhf_ray.cluster.placement import lay_out
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.inference import GenerateConfig, SafetyConfig
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.records import Sample
from rlhf_ray.roles.scorer import PendingRewards, RewardSources
from rlhf_ray.runs.model_checks import check_reward_source

FilterOutcome = Literal["passed", "resampled", "replaced", "refused"]

SAFETY_COLUMNS = {"cost": float, "safety": str, "attempts": int}
"""What rows say of the filter: cost of the last answer that was drawn, null where it is not known or does not apply;
what became of it; answers that were drawn."""

SAMPLES_AT_ONCE = 64
"""Answers sent to the cost model together, while the engines write further ones."""

DrawAgain = Callable[[Sequence[str], int, int], Iterable[list[Sample]]]
"""Other answers: to the prompts of these ids, so many to each; the last number counts rounds, from 1."""


@dataclass(frozen=True)
class Guarded:
    """An answer as it goes out."""

    sample: Sample
    outcome: FilterOutcome
    cost: float | None
    attempts: int

    def columns(self) -> Row:
        """See SAFETY_COLUMNS."""
        return {"cost": self.cost, "safety": self.outcome, "attempts": self.attempts}


@dataclass
class _Draft:
    """An answer that was drawn: its cost is None where it does not apply, NaN where it is not known."""

    sample: Sample
    cost: float | None = math.nan
    attempts: int = 1


class SafetyFilter:
    """Judges answers and puts others in the place of those over the threshold.

    An answer whose cost could not be found counts as over it: nothing goes out unjudged. Such failures have the limit
    of every reward source, `failed_scores`.
    """

    def __init__(self, safety: SafetyConfig, sources: RewardSources, draw_again: DrawAgain) -> None:
        self._safety = safety
        self._sources = sources
        self._draw_again = draw_again
        self._outcomes: Counter[FilterOutcome] = Counter()

    def guard(self, groups: Iterator[list[Sample]], window: int) -> Iterator[list[Guarded]]:
        """Pass groups on in their order, `window` of them at a time: when the last of these comes, the engines rest.

        Raises:
            TooManyFailures: the cost of more answers than allowed could not be found.
        """
        while True:
            drafts = self._judged(islice(groups, window))
            if not drafts:
                return
            if self._safety.action == "resample":
                for number in range(1, self._safety.resamples + 1):
                    self._try_others(drafts, number)
            for group in drafts:
                guarded = [self._settled(draft) for draft in group]
                self._outcomes.update(one.outcome for one in guarded)
                yield guarded

    def check_all(self) -> None:
        """Check all failures at the end: see `FailureTally.check_all`."""
        for tally in self._sources.tallies.values():
            tally.check_all()

    def lines(self) -> list[str]:
        """Return lines for the console: what became of the answers, and the first failure of each kind."""
        counts = ", ".join(f"{self._outcomes[outcome]} {outcome}" for outcome in self._outcomes)
        found = [f"safety: {counts} (threshold {self._safety.threshold:g})"]
        for tally in self._sources.tallies.values():
            found += [f"  {kind}: {message}" for kind, message in tally.reasons.items()]
        return found

    def _judged(self, groups: Iterable[list[Sample]]) -> list[list[_Draft]]:
        """Return groups with their costs; batches are judged while further groups are written."""
        drafts: list[list[_Draft]] = []
        waiting: list[_Draft] = []
        sent: list[tuple[list[_Draft], PendingRewards]] = []

        def send() -> None:
            sent.append((waiting.copy(), self._sources.submit([draft.sample for draft in waiting])))
            waiting.clear()

        for group in groups:
            drafts.append([_Draft(sample) for sample in group])
            waiting += drafts[-1]
            if len(waiting) >= SAMPLES_AT_ONCE:
                send()
        if waiting:
            send()
        cost = self._safety.cost
        for batch, pending in sent:
            for draft, value in zip(batch, pending.result()[cost.name], strict=True):
                draft.cost = None if value is None else cost.weight * value
        return drafts

    def _passes(self, draft: _Draft) -> bool:
        # A comparison with NaN is false.
        return draft.cost is None or draft.cost <= self._safety.threshold

    def _try_others(self, drafts: list[list[_Draft]], number: int) -> None:
        """Draw once more in the place of each answer that does not pass."""
        by_count: dict[int, dict[str, list[_Draft]]] = {}
        for group in drafts:
            failed = [draft for draft in group if not self._passes(draft)]
            if failed:
                by_count.setdefault(len(failed), {})[group[0].sample.prompt_id] = failed
        for count, places in by_count.items():
            for found in self._judged(self._draw_again(list(places), count, number)):
                for place, other in zip(places[found[0].sample.prompt_id], found, strict=True):
                    place.sample = replace(other.sample, index=place.sample.index)
                    place.cost = other.cost
                    place.attempts += 1

    def _settled(self, draft: _Draft) -> Guarded:
        cost = draft.cost if draft.cost is None or math.isfinite(draft.cost) else None
        if self._passes(draft):
            return Guarded(draft.sample, "passed" if draft.attempts == 1 else "resampled", cost, draft.attempts)
        if self._safety.action == "replace":
            return Guarded(replace(draft.sample, response=self._safety.replacement), "replaced", cost, draft.attempts)
        return Guarded(replace(draft.sample, response=""), "refused", cost, draft.attempts)


def check_safety(config: GenerateConfig) -> None:
    """Check the cost model, and that it need not take turns with the engines.

    Raises:
        BadInput: names the key and what to do.
    """
    if config.safety is None:
        return
    check_reward_source("safety.cost", config.safety.cost)
    layout = lay_out(config.groups, {"rollout": config.rollout, "safety.cost": config.safety.cost})
    if layout.sharing("safety.cost"):
        raise BadInput(
            "safety.cost.gpus_per_worker: answers are judged while engines write others, so the two cannot take turns "
            "on a GPU; give each a fraction (and the engine gpu_memory_utilization), or put the cost model on CPU"
        )

"""Reward sources as Ray actors, and the driver's side: one call scores samples by all of them."""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import ray
from ray.actor import ActorHandle

from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.cluster.errors import RoleDied
from rlhf_ray.cluster.group import ActorGroup, ready_together
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.data.columns import AnsweredPrompt
from rlhf_ray.data.records import ASSISTANT, Prompt, Sample
from rlhf_ray.models.facts import weight_bytes
from rlhf_ray.scoring.kinds import kind_of
from rlhf_ray.scoring.source import Failure, FailureTally, RewardSourceProtocol, Scores, combine

Batch = tuple[list[Prompt], list[str], dict[str, list[Any]]]


class ScorerActor:
    """One copy of a reward source. It loads at the first call, whose error then reaches the driver with its type."""

    def __init__(self, source: RewardConfig, tokens_per_microbatch: int) -> None:
        self._config = source
        self._tokens_per_microbatch = tokens_per_microbatch

    @cached_property
    def _source(self) -> RewardSourceProtocol:
        return kind_of(self._config).open(self._config, self._tokens_per_microbatch)

    def load(self) -> None:
        """Load the source."""
        _ = self._source

    def score(self, batch: Batch) -> Scores:
        """Score prompts with their completions."""
        return self._source.score(*batch)

    def wake(self) -> None:
        """Be ready to score."""
        self._source.wake()

    def sleep(self) -> None:
        """Leave the device to others."""
        self._source.sleep()


class PendingRewards:
    """Samples on their way through all sources."""

    def __init__(self, sources: "RewardSources", batches: Mapping[str, list[tuple[list[int], Batch]]]) -> None:
        self._sources = sources
        self._batches = batches
        self._calls = {
            name: [self._call(name, rank, batch) for rank, (_, batch) in enumerate(shares)]
            for name, shares in batches.items()
        }

    def result(self) -> dict[str, list[float | None]]:
        """Return scores by source, in the samples' order: None where one does not apply, NaN where it failed.

        A copy whose process or machine died is started again and given its share once more.

        Raises:
            TooManyFailures: a source failed for more samples than its `failed_scores` allows.
            RoleError: a copy did not answer in time, or died too often.
        """
        return {name: self._scores(name).values for name in self._batches}

    def _scores(self, name: str) -> Scores:
        shares = self._batches[name]
        whole = Scores([None] * sum(len(rows) for rows, _ in shares))
        for rank, (rows, batch) in enumerate(shares):
            scores = self._share(name, rank, batch)
            for row, value in zip(rows, scores.values, strict=True):
                whole.values[row] = value
            whole.failures += [
                Failure(failure.kind, failure.message, tuple(rows[row] for row in failure.rows))
                for failure in scores.failures
            ]
        self._sources.tallies[name].add(whole)
        return whole

    def _share(self, name: str, rank: int, batch: Batch) -> Scores:
        group, (ref, handle) = self._sources.groups[name], self._calls[name][rank]
        while True:
            try:
                scores: Scores = group.wait([ref], phase="score", rank=rank)[0]
                return scores
            except RoleDied:
                # Another batch may have noticed first and started a new copy already.
                if group.handles[rank] is handle:
                    group.restart(rank)
                ref, handle = self._call(name, rank, batch)

    def _call(self, name: str, rank: int, batch: Batch) -> tuple[ray.ObjectRef, ActorHandle]:
        """Return a call in flight, and the copy that it went to."""
        group = self._sources.groups[name]
        return group.submit_one(rank, "score", batch), group.handles[rank]


class RewardSources:
    """All reward sources of a run."""

    def __init__(
        self,
        cluster: Cluster,
        sources: Sequence[RewardConfig],
        tokens_per_microbatch: int,
        max_restarts: int = 0,
        cost_weight: float = 0.0,
    ) -> None:
        """Start all copies of all sources without waiting for them: call `ready`.

        Args:
            cluster: where they run.
            sources: their settings.
            tokens_per_microbatch: of a model's forward pass.
            max_restarts: of each copy.
            cost_weight: what costs weigh against rewards in `combine`; 0 keeps them apart.

        Raises:
            DoesNotFit: a source has no room in its group.
        """
        self.costs = {source.name: source.weight for source in sources if source.measures == "cost"}
        """Weights of the sources of costs."""
        self.weights = {source.name: source.weight for source in sources if source.measures == "reward"}
        """Weights of the sources of the reward."""
        if cost_weight:
            self.weights |= {name: -cost_weight * weight for name, weight in self.costs.items()}
        self.tallies = {source.name: FailureTally(f"reward {source.name}", source.failed_scores) for source in sources}
        self.groups = {
            source.name: ActorGroup(
                cluster,
                ScorerActor,
                source,
                f"rewards.{source.name}",
                partial(_arguments, source, tokens_per_microbatch),
                max_restarts,
                weight_bytes=sum(held.copies * weight_bytes(held.model.path) for held in source.held_models()),
            )
            for source in sources
        }
        for group in self.groups.values():
            group.begin("load")

    @property
    def shares_devices(self) -> bool:
        """Whether a source shares a GPU with another role."""
        return any(group.cluster.layout.sharing(group.name) for group in self.groups.values())

    def ready(self, seconds: float | None = None) -> None:
        """Wait until every source has loaded.

        Raises:
            RoleError: one did not start.
        """
        ready_together(list(self.groups.values()), seconds)

    def submit(self, samples: Sequence[Sample]) -> PendingRewards:
        """Send samples to all sources, divided among the copies of each."""
        answers = [answered(sample) for sample in samples]
        return self.submit_answers(answers, [len(s.prompt_ids) + len(s.response_ids) for s in samples])

    def submit_answers(self, answers: Sequence[AnsweredPrompt], lengths: Sequence[int]) -> PendingRewards:
        """Send answered prompts to all sources; by `lengths`, in any unit, copies get equal shares."""
        return PendingRewards(
            self,
            {
                name: [(rows, _batch([answers[row] for row in rows])) for rows in _shares(lengths, group.size)]
                for name, group in self.groups.items()
            },
        )

    def combine(self, scores: Mapping[str, Sequence[float | None]]) -> list[float]:
        """Return each sample's reward, the weighted sum of its scores; NaN where one failed or none applies.

        A score of none of the sources, such as a person's, counts as it is.
        """
        counted = {name: values for name, values in scores.items() if name in self.weights or name not in self.costs}
        return combine(counted, {name: self.weights.get(name, 1.0) for name in counted})

    def combine_costs(self, scores: Mapping[str, Sequence[float | None]]) -> list[float]:
        """Return the cost of each sample, likewise."""
        return combine({name: scores[name] for name in self.costs}, self.costs)

    def wake(self) -> None:
        """Bring all sources back onto their devices."""
        for group in self.groups.values():
            group.turn("wake")

    def sleep(self) -> None:
        """Clear the devices of all sources."""
        for group in self.groups.values():
            group.turn("sleep")

    def clear(self) -> None:
        """Clear devices that are shared, before there are turns."""
        for group in self.groups.values():
            if group.shares_devices:
                group.call("sleep")


def answered(sample: Sample) -> AnsweredPrompt:
    """Return a sample as sources read it.

    An episode is the policy's last answer to all that was said before; its turns are the column `turns` beside.
    """
    if sample.episode is None or isinstance(sample.prompt, str):
        return AnsweredPrompt(sample.prompt, sample.response, sample.columns)
    turns = sample.episode.turns
    own = [place for place, turn in enumerate(turns) if turn["role"] == ASSISTANT]
    before, last = (turns[: own[-1]], turns[own[-1]]["content"]) if own else (turns, "")
    return AnsweredPrompt([*sample.prompt, *before], last, sample.columns | {"turns": turns})


def _arguments(source: RewardConfig, tokens_per_microbatch: int, rank: int) -> dict[str, Any]:
    return {"source": source, "tokens_per_microbatch": tokens_per_microbatch}


def _shares(lengths: Sequence[int], copies: int) -> list[list[int]]:
    """Deal rows to copies, every n-th in order of length, so that all have as much to read; no share is empty."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[copy::copies] for copy in range(min(copies, len(order)))]


def _batch(answers: Sequence[AnsweredPrompt]) -> Batch:
    # A column that only some rows have is None for the others.
    names = dict.fromkeys(name for answer in answers for name in answer.columns)
    columns = {name: [answer.columns.get(name) for answer in answers] for name in names}
    return [answer.prompt for answer in answers], [answer.completion for answer in answers], columns

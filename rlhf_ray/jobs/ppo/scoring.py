"""Rewards and forward passes of a step's groups, started as the groups come, or in turns where devices are shared."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rlhf_ray.config.episodes import ENVIRONMENT
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import Sample
from rlhf_ray.experience.costs import COST_CRITIC_ROLE, Costs
from rlhf_ray.experience.experience import Greedy, RoleOutputs, behaviour_logprobs
from rlhf_ray.jobs.ppo.roles import PPORoles
from rlhf_ray.jobs.ppo.turns import POLICY, REFERENCE, REWARDS
from rlhf_ray.roles.scorer import PendingRewards
from rlhf_ray.roles.trainer import Pending, SharedBatch
from rlhf_ray.rollout.interfaces import Group
from rlhf_ray.scoring.source import Scores, failures_of


@dataclass
class Chunk:
    """Some groups of a batch, and what roles have found of them so far."""

    samples: list[Sample]
    greedy: list[Sample]
    """The last of each group, where the estimator compares with it; only rewards look at them."""
    sizes: list[int]
    """Samples of each group, without the greedy one."""
    shared: SharedBatch
    """The samples' tokens."""
    rewards: PendingRewards | None = None
    """Of samples, then greedy ones; None where they have their rewards already."""
    reference: Pending[dict[str, np.ndarray]] | None = None
    logprobs: Pending[dict[str, np.ndarray]] | None = None
    """The policy's; None where the engines' count."""
    values: dict[str, Pending[np.ndarray]] = field(default_factory=dict)
    """Of each critic, by its role."""

    def put_rewards(self) -> None:
        """Wait for each source's scores, and put them into the samples; once."""
        if self.rewards is not None:
            put_rewards([*self.samples, *self.greedy], self.rewards.result())
            self.rewards = None

    def wait(self) -> None:
        """Wait until nobody computes any more."""
        self.put_rewards()
        for pending in (self.logprobs, self.reference, *self.values.values()):
            if pending is not None:
                pending.result()

    def combined_rewards(self, roles: PPORoles) -> tuple[list[float], list[float]]:
        """Return weighted sums of the sources' scores, of samples and of greedy ones; NaN for failures."""
        sums = roles.rewards.combine(rewards_of([*self.samples, *self.greedy]))
        return sums[: len(self.samples)], sums[len(self.samples) :]


@dataclass
class PendingScores:
    """Scores that `PPODriver.score` starts and `make_experience` waits for.

    Roles with devices of their own are asked as groups come, those that share some once all have come, in turns.
    """

    roles: PPORoles
    tokens: int
    """Groups wait until they are so many tokens, a micro-batch's worth for each rank."""
    order: Sequence[str]
    """Roles that look at samples, in the order of their turns."""
    greedy_last: bool = False
    """Whether the last sample of each group is its greedy one."""
    engine_logprobs: bool = False
    """Whether the engines' log-probabilities are taken for the policy's own, which then makes no forward pass."""
    rewarded: bool = False
    """Whether groups come with their rewards."""
    samples: int = 0
    """Samples that have come."""
    _waiting: list[Group] = field(default_factory=list)
    _chunks: list[Chunk] = field(default_factory=list)
    _read: int = 0
    """Chunks, of the first ones, that the models that learn read."""

    def add(self, group: Group, *, early: bool = False) -> None:
        """Start to score a group that has come; models that learn do not read an early one yet."""
        self._waiting.append(group)
        self.samples += len(group)
        tokens = sum(len(s.prompt_ids) + len(s.response_ids) for group in self._waiting for s in group)
        if tokens >= self.tokens:
            self._dispatch()
        if not early:
            self._let_learners_read()

    def _let_learners_read(self) -> None:
        """Let policy and critics that have their own devices read the chunks that they have not read."""
        for chunk in self._chunks[self._read :]:
            self._ask([role for role in self._on_their_own if role in self.roles.trained], chunk)
        self._read = len(self._chunks)

    def _dispatch(self) -> None:
        groups, self._waiting = self._waiting, []
        if not groups:
            return
        drawn = [group[:-1] if self.greedy_last else group for group in groups]
        samples = [sample for group in drawn for sample in group]
        greedy = [group[-1] for group in groups] if self.greedy_last else []
        shared = SharedBatch.put(TokenBatch.from_samples(samples))
        chunk = Chunk(samples, greedy, [len(group) for group in drawn], shared)
        self._ask([role for role in self._on_their_own if role not in self.roles.trained], chunk)
        self._chunks.append(chunk)

    @property
    def _on_their_own(self) -> list[str]:
        """Roles that share no devices."""
        return [role for role in self.order if role not in self.roles.turns.roles]

    def _ask(self, names: Collection[str], chunk: Chunk) -> None:
        """Send a chunk to roles, without waiting for them."""
        roles, shared = self.roles, chunk.shared
        if REWARDS in names and not self.rewarded:
            chunk.rewards = roles.rewards.submit([*chunk.samples, *chunk.greedy])
        if POLICY in names and not self.engine_logprobs:
            chunk.logprobs = roles.policy.submit_logprobs(shared)
        if (POLICY if roles.adapter_off else REFERENCE) in names:
            chunk.reference = roles.submit_reference(shared)
        chunk.values |= {role: critic.submit_values(shared) for role, critic in roles.critics.items() if role in names}

    def _take_turns(self) -> None:
        """Ask those that share devices, and wait for them before the next ones have the devices."""
        turns = self.roles.turns
        for names in turns.rounds([role for role in self.order if role in turns.roles]):
            turns.give(*names)
            for chunk in self._chunks:
                self._ask(names, chunk)
            for chunk in self._chunks:
                chunk.wait()

    def finish(self) -> tuple[list[Sample], RoleOutputs]:
        """Wait for everything: the samples, group after group, and what was found of them."""
        self._dispatch()
        self._let_learners_read()
        self._take_turns()
        chunks = self._chunks
        scores: list[float] = []
        greedy_samples: list[Sample] = []
        greedy_scores: list[float] = []
        for chunk in chunks:
            chunk.put_rewards()
            drawn, greedy = chunk.combined_rewards(self.roles)
            scores += drawn
            for size, sample, score in zip(chunk.sizes, chunk.greedy, greedy, strict=False):
                greedy_samples += [sample] * size
                greedy_scores += [score] * size
        logprobs = [chunk.logprobs.result()["logprobs"] for chunk in chunks if chunk.logprobs is not None]
        references = [chunk.reference.result()["logprobs"] for chunk in chunks if chunk.reference is not None]
        values = {
            role: _joined([chunk.values[role].result() for chunk in chunks]) for role in self.roles.critics if chunks
        }
        samples = [sample for chunk in chunks for sample in chunk.samples]
        outputs = RoleOutputs(
            logprobs=behaviour_logprobs(samples) if self.engine_logprobs else _joined(logprobs),
            reference_logprobs=_joined(references) if references else None,
            values=values.get("critic"),
            scores=torch.tensor(scores, dtype=torch.float32),
            greedy=Greedy(greedy_samples, torch.tensor(greedy_scores)) if self.greedy_last else None,
            costs=self._costs(samples, values[COST_CRITIC_ROLE]) if COST_CRITIC_ROLE in values else None,
        )
        return samples, outputs

    def _costs(self, samples: Sequence[Sample], values: Tensor) -> Costs:
        scores = self.roles.rewards.combine_costs(rewards_of(samples))
        return Costs(torch.tensor(scores, dtype=torch.float32), values)


def put_rewards(samples: Sequence[Sample], by_source: Mapping[str, Sequence[float | None]]) -> None:
    """Put each source's scores into the samples, and what their environments gave beside them."""
    for position, sample in enumerate(samples):
        sample.rewards = {name: scores[position] for name, scores in by_source.items()} | of_environment(sample)


def of_environment(sample: Sample) -> dict[str, float | None]:
    """Return what an episode's environment gave: NaN where that failed, None where it gives none."""
    if sample.episode is None:
        return {}
    return {ENVIRONMENT: math.nan if sample.episode.failure is not None else sample.episode.reward}


def failed_episodes(samples: Sequence[Sample]) -> Scores:
    """Return the rewards of environments with the failures among them."""
    episodes = [sample.episode for sample in samples if sample.episode is not None]
    broken = [(one.failure[0], row, one.failure[1]) for row, one in enumerate(episodes) if one.failure is not None]
    return Scores([episode.reward for episode in episodes], failures_of(broken))  # type: ignore[arg-type]  # kinds


def rewards_of(samples: Sequence[Sample]) -> dict[str, list[float | None]]:
    """Return scores by source, as the samples hold them."""
    return {name: [sample.rewards[name] for sample in samples] for name in (samples[0].rewards if samples else ())}


def _joined(pieces: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces))

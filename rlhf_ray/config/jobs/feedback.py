"""`rlhf feedback`: PPO on the scores of a person at the terminal."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.checks.algorithm import ANOTHER_SAMPLED
from rlhf_ray.config.checks.files import absent_file
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.numbers import AnyFloat, OfIntegers, PositiveInt, WrittenAsList
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.reading.documents import Problem
from rlhf_ray.config.rewards import RewardConfig


class FeedbackAlgorithmConfig(AlgorithmConfig):
    """Way in which the score of one answer becomes an update."""

    advantages: Literal["gae", "reinforce_plus_plus"] = "gae"
    """Estimator of advantages; the others compare answers to one prompt, and here is one."""

    whiten_advantages: bool = False
    """Stays false: within one answer whitening takes away what the score says of the whole of it."""


def _no_sources(given: object) -> object:
    if given:
        raise ValueError("here a person scores the answers; leave it out, or run this file by rlhf ppo")
    return given


class FeedbackConfig(PPOConfig):
    """Learn from a person at the terminal: the model answers, the person scores, one PPO step follows."""

    steps: PositiveInt = 1000
    """Answers to learn from, over all sessions of the run."""

    prompts_per_step: Annotated[Literal[1], OfIntegers] = 1
    """One answer is scored and learned from at a time."""

    samples_per_prompt: Annotated[Literal[1], OfIntegers] = 1
    """Likewise."""

    minibatches: Annotated[Literal[1], OfIntegers] = 1
    """Optimizer steps of one pass over the answer."""

    epochs: PositiveInt = 1
    """Passes over each answer, an optimizer step each."""

    algorithm: FeedbackAlgorithmConfig = Field(default_factory=FeedbackAlgorithmConfig)
    """How a score becomes an update."""

    rewards: Annotated[list[RewardConfig], BeforeValidator(_no_sources)] = Field(default_factory=list)
    """Stays empty: the person is the reward source."""

    reward_range: Annotated[tuple[AnyFloat, AnyFloat], WrittenAsList] = (-2.0, 2.0)
    """Lowest and highest score that the person may give."""

    language: Literal["en", "zh"] = "en"
    """Language of what the terminal says."""

    replay: PathText | None = None
    """Learn from the rows of this file, the `feedback.jsonl` of a session, instead of asking. None: ask."""

    def environment_problems(self) -> Iterator[Problem]:
        """Find an environment: here the person answers to what the model says."""
        for name in self.rollout.of_episodes():
            text = "a person scores single answers here; leave it out, or run this file by rlhf ppo"
            yield Problem(("rollout", name), text)

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        lowest, highest = self.reward_range
        if not lowest < highest:
            yield Problem(("reward_range",), f"is [lowest, highest], not [{lowest:g}, {highest:g}]")
        algorithm = self.algorithm
        if algorithm.whiten_advantages:
            text = "would take the mean of a single answer away, and with it the score; leave it out"
            yield Problem(("algorithm", "whiten_advantages"), text)
        if algorithm.reward_normalisation == "whiten":
            text = "takes away from a person's scores what they have in common; set scale or none"
            yield Problem(("algorithm", "reward_normalisation"), text)
        if algorithm.old_logprobs == "engine" and self.replay is not None:
            yield Problem(("algorithm", "old_logprobs"), ANOTHER_SAMPLED)
        if algorithm.max_staleness:
            text = f"{algorithm.max_staleness} lets engines write ahead, but here each answer waits for a person; set 0"
            yield Problem(("algorithm", "max_staleness"), text)
        if self.evaluation.data is not None:
            yield Problem(("evaluation", "data"), "nobody scores held-out answers here; leave it out")
        for name, value in (("record", self.rollout.record), ("replay", self.rollout.replay)):
            if value is not None:
                text = "feedback.jsonl in the run folder has every answer with its score; `replay` at the top reads one"
                yield Problem(("rollout", name), text)

    def max_staleness(self) -> None:
        """Return None: each answer waits for a person."""

    def missing(self) -> Iterator[Problem]:
        """Find rows to learn from that are not there."""
        yield from super().missing()
        yield from absent_file(("replay",), self.replay)

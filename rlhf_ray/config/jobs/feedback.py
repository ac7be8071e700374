"""`rlhf feedback`: PPO on the scores of a person at the terminal."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.numbers import AnyFloat, OfIntegers, PositiveInt, WrittenAsList
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.rewards import RewardConfig


class FeedbackAlgorithmConfig(AlgorithmConfig):
    """How the score of one answer becomes an update."""

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

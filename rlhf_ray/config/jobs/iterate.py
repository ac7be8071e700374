"""`rlhf iterate`: rounds of collecting, labelling, reward model, PPO and evaluation."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.costs import untrained_cost_problems
from rlhf_ray.config.checks.files import unreadable_config
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.numbers import NonNegativeFloat, PositiveInt, Seed
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import RewardConfig


class SourceLabels(Section):
    """Answers are ranked by their scores: a reward model as judge, or an oracle function."""

    kind: Literal["sources"]
    """Chooses this kind."""

    rewards: list[RewardConfig] = Field(min_length=1)
    """Who scores; the weighted sum ranks."""

    tie_margin: NonNegativeFloat = 0.0
    """An answer that scores lower than the best of its rank by no more than this has the same rank."""


class PeopleLabels(Section):
    """People rank the answers; each round waits for their file."""

    kind: Literal["people"]
    """Chooses this kind."""

    path: PathText | None = None
    """Export of the labelling app, with `{round}` for the round's number (00). None: `labels.jsonl` in its folder."""


LabelsConfig = Annotated[SourceLabels | PeopleLabels, Field(discriminator="kind")]


class IterateConfig(JobConfig):
    """Online preference learning: each round asks about answers of the present policy, and trains it on the labels."""

    output: PathText
    """Folder of the rounds; the same command goes on where it stopped."""

    seed: Seed = 0
    """Seeds the choice of prompts and, with the round's number, each stage."""

    rounds: PositiveInt = 3
    """Number of rounds; may be raised later."""

    model: PathText
    """Model directory or hub name that the first round begins from."""

    prompts: RowSource
    """Prompts to collect answers to; each comes once before any comes again."""

    prompts_per_round: PositiveInt
    """Prompts whose answers are labelled in a round."""

    answers: int = Field(default=4, ge=2, le=9)
    """Answers to each prompt, which are ranked."""

    labels: LabelsConfig
    """Who ranks them."""

    keep_preferences: bool = True
    """Train the reward model on the rankings of all rounds so far; false: of the newest alone."""

    policy_from: Literal["previous", "start"] = "previous"
    """Where PPO begins, which is also its reference: the policy of the round before, or `model` in each round."""

    generate: PathText
    """Config file of `rlhf generate`. Here and below the round's paths, model and seed are filled in."""

    reward: PathText
    """Config file of `rlhf reward`."""

    ppo: PathText
    """Config file of `rlhf ppo`; the first reward of kind model gets the round's reward model."""

    evaluate: PathText
    """Config file of `rlhf evaluate`, whose models `start` and `policy` are filled in, and a reward as for PPO."""

    def placements(self) -> dict[KeyPath, PlacementConfig]:
        """Return none: each stage places its own roles."""
        return {}

    def reward_sources(self) -> dict[KeyPath, RewardConfig]:
        """Return the sources that rank answers."""
        if not isinstance(self.labels, SourceLabels):
            return {}
        return {("labels", "rewards", index): reward for index, reward in enumerate(self.labels.rewards)}

    def model_paths(self) -> dict[KeyPath, str]:
        """Return the first round's, and those of reward models that rank."""
        return {("model",): self.model} | super().model_paths()

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the prompts."""
        return {("prompts",): self.prompts}

    def output_folder(self) -> str | None:
        """Return `output`."""
        return self.output

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        yield from untrained_cost_problems(self.reward_sources())

    def missing(self) -> Iterator[Problem]:
        """Find configs of stages that cannot be read."""
        stages = {"generate": self.generate, "reward": self.reward, "ppo": self.ppo, "evaluate": self.evaluate}
        for verb, file in stages.items():
            yield from unreadable_config((verb,), file)

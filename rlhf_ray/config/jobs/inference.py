"""`rlhf generate` and `rlhf score`: a model over a data set, once."""

from collections.abc import Iterator, Mapping
from typing import Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.costs import untrained_cost_problems
from rlhf_ray.config.checks.inference import safety_problems, sampling_problems, score_column_problems
from rlhf_ray.config.data import DataConfig, PromptDataConfig, RowSource
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.model import HeldModel, ModelConfig
from rlhf_ray.config.numbers import AnyFloat, NonNegativeInt, PositiveInt, Samples, Seed
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import GENERATE, SCORE, ClusterConfig, GroupConfig, Phases, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.config.rollout import RolloutConfig


class SamplingConfig(Section):
    """Sampling of `rlhf generate`; freer than training, which must sample what it scores."""

    top_p: float = Field(default=1.0, gt=0, le=1)
    """Smallest set of tokens with this probability mass."""

    top_k: NonNegativeInt = 0
    """Most likely tokens to choose from; 0 takes all."""

    greedy: bool = False
    """Take the most likely token always."""


class SafetyConfig(Section):
    """Keeps answers that cost too much from going out."""

    cost: RewardConfig
    """What judges answers: any kind of reward source, such as a model trained on costs; higher is worse."""

    threshold: AnyFloat = 0.0
    """An answer of a higher cost does not go out, nor does one whose cost could not be found."""

    action: Literal["refuse", "replace", "resample"] = "refuse"
    """refuse: the answer is left empty. replace: `replacement` stands in its place. resample: other answers are drawn,
    and it is refused if none of them passes."""

    replacement: str = Field(default="Sorry, I cannot answer that.", min_length=1)
    """Text of `replace`."""

    resamples: int = Field(default=4, ge=1, le=1000)
    """Most further answers of `resample` in the place of one."""


class InferenceConfig(JobConfig):
    """Settings that jobs without training share."""

    output: PathText
    """File to write, .jsonl or .parquet."""

    seed: Seed = 0
    """Seeds sampling."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Which Ray to use, and deadlines."""

    groups: dict[str, GroupConfig] = Field(default_factory=lambda: {"main": GroupConfig()})
    """Named groups of nodes; roles say which one they are on."""

    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    """Environment variables of the workers."""

    def node_groups(self) -> Mapping[str, GroupConfig]:
        """Return `groups`."""
        return self.groups

    def worker_environment(self) -> EnvironmentConfig:
        """Return `environment`."""
        return self.environment

    def output_files(self) -> dict[KeyPath, str]:
        """Return `output`."""
        return {("output",): self.output}

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        if not self.output.endswith((".jsonl", ".parquet")):
            yield Problem(("output",), f"ends in .jsonl or .parquet, not {self.output!r}")


class GenerateConfig(InferenceConfig):
    """Answer prompts with a model."""

    model: ModelConfig
    """The model that answers."""

    data: PromptDataConfig
    """Prompts."""

    samples_per_prompt: Samples = 1
    """Responses to each prompt."""

    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """The engines."""

    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """Restrictions of the sampling distribution."""

    safety: SafetyConfig | None = None
    """Filter of the answers by a cost. None: all go out."""

    def placements(self) -> dict[KeyPath, PlacementConfig]:
        """Return the engines, and what judges their answers."""
        return {("rollout",): self.rollout} | super().placements()

    def phases(self) -> Phases:
        """Return the one phase."""
        return {GENERATE: ("rollout", "safety")}

    def reward_sources(self) -> dict[KeyPath, RewardConfig]:
        """Return the cost that filters answers."""
        return {} if self.safety is None else {("safety", "cost"): self.safety.cost}

    def model_paths(self) -> dict[KeyPath, str]:
        """Return those of `model`, and of the cost."""
        found: dict[KeyPath, str] = {("model", *key): path for key, path in self.model.paths().items()}
        return found | super().model_paths()

    def held_models(self) -> dict[KeyPath, list[HeldModel]]:
        """Return the cost's, and the engines'."""
        return super().held_models() | {("rollout",): [HeldModel(self.model)]}

    def longest_sample(self) -> int:
        """Return the tokens of the longest prompt with the longest response."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    def batch_lines(self) -> Iterator[str]:
        """Say how many responses there are."""
        yield (
            f"{self.samples_per_prompt} responses to each prompt, of at most {self.rollout.max_new_tokens} tokens, "
            f"by {self.rollout.workers} engines."
        )

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the prompts."""
        return {("data",): self.data}

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        yield from sampling_problems(self.sampling, self.samples_per_prompt, self.rollout)
        if self.safety is not None:
            yield from safety_problems(self.safety, self.sampling.greedy)


class ScoreConfig(InferenceConfig):
    """Score prompts with their completions."""

    data: DataConfig
    """Rows with `prompt` and `completion` (or `text`)."""

    rewards: list[RewardConfig] = Field(min_length=1)
    """Reward sources; each becomes a column, their weighted sum the column `reward`."""

    batch_size: PositiveInt = 64
    """Rows sent to a source at a time."""

    def phases(self) -> Phases:
        """Return the one phase."""
        return {SCORE: ("rewards",)}

    def reward_sources(self) -> dict[KeyPath, RewardConfig]:
        """Return `rewards`."""
        return {("rewards", index): reward for index, reward in enumerate(self.rewards)}

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the rows."""
        return {("data",): self.data}

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        yield from score_column_problems(self.rewards)
        yield from untrained_cost_problems(self.reward_sources())

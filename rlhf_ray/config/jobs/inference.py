"""`rlhf generate` and `rlhf score`: a model over a data set, once."""

from typing import Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.data import DataConfig, PromptDataConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.numbers import AnyFloat, NonNegativeInt, PositiveInt, Samples, Seed
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import ClusterConfig, GroupConfig
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.config.rollout import RolloutConfig

TOTAL_COLUMN = "reward"
"""Column of the weighted sum that `rlhf score` writes."""


class SamplingConfig(Section):
    """How `rlhf generate` samples; freer than training, which must sample what it scores."""

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


class InferenceConfig(Section):
    """What jobs without training share."""

    output: PathText
    """File to write, .jsonl or .parquet."""

    seed: Seed = 0
    """Seeds sampling."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Which Ray to use, and deadlines."""

    groups: dict[str, GroupConfig] = Field(default_factory=lambda: {"main": GroupConfig()})
    """Named groups of nodes; roles say which one they are on."""


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


class ScoreConfig(InferenceConfig):
    """Score prompts with their completions."""

    data: DataConfig
    """Rows with `prompt` and `completion` (or `text`)."""

    rewards: list[RewardConfig] = Field(min_length=1)
    """Reward sources; each becomes a column, their weighted sum the column `reward`."""

    batch_size: PositiveInt = 64
    """Rows sent to a source at a time."""

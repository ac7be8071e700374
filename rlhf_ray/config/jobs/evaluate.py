"""`rlhf evaluate`: several models side by side."""

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.data import PromptDataConfig, TextDataConfig
from rlhf_ray.config.jobs.inference import SamplingConfig
from rlhf_ray.config.jobs.judges import JudgeConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.numbers import Samples, Seed, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import ClusterConfig, GroupConfig
from rlhf_ray.config.rewards import FunctionReward, RewardConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import ReferenceConfig

ORACLE = "oracle"
"""Name of the oracle's scores beside those of the reward sources."""


class ComparedModel(ModelConfig):
    """One of the models."""

    run: PathText | None = None
    """Folder of the run that made it, for wall time and peak memory. None: the folder above `path`, if it is one."""


class EvaluateConfig(Section):
    """Compare models on the same held-out prompts: rewards, an oracle, KL, diversity, perplexity, win rates, cost."""

    output: PathText
    """Folder of answers, scores, summary.json and comparison.html; the same command goes on where it stopped."""

    seed: Seed = 0
    """Seeds sampling; all models answer with the same seeds."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Which Ray to use, and deadlines."""

    groups: dict[str, GroupConfig] = Field(default_factory=lambda: {"main": GroupConfig()})
    """Named groups of nodes; roles say which one they are on."""

    models: dict[str, ComparedModel] = Field(min_length=1)
    """The models by name, in the order in which they are shown. One at a time is loaded."""

    baseline: str | None = None
    """Name of the model against which win rates and differences are taken. None: the first."""

    reference: str | None = None
    """Name of the model to which KL is measured. None: no KL."""

    data: PromptDataConfig
    """Held-out prompts."""

    samples_per_prompt: Samples = 1
    """Responses of each model to each prompt."""

    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """The engines."""

    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """Restrictions of the sampling distribution."""

    rewards: list[RewardConfig] = Field(default_factory=list)
    """Reward sources; the reward of a response is their weighted sum."""

    oracle: FunctionReward | None = None
    """A judgement that no training has seen, called as a reward function is. None: none."""

    texts: TextDataConfig | None = None
    """Held-out texts for perplexity, by which the alignment tax shows. None: none."""

    judges: list[JudgeConfig] = Field(default_factory=list)
    """Who compares each model's answers with the baseline's."""

    measure: ReferenceConfig = Field(default_factory=ReferenceConfig)
    """Placement of the models while their log-probabilities are computed."""

    tokens_per_microbatch: Tokens = 8192
    """Tokens, padding counted, of one forward pass on one worker."""

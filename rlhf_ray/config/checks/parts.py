"""What a job's config names: its roles, the models that it loads and the data sets that it reads, each by key."""

from rlhf_ray.config.base import Section
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.inference import GenerateConfig, InferenceConfig, ScoreConfig
from rlhf_ray.config.jobs.iterate import IterateConfig, SourceLabels
from rlhf_ray.config.jobs.labelling import (
    AnswerConfig,
    CompareConfig,
    FeedbackPageConfig,
    FileAnswers,
    LabelConfig,
    RolloutAnswers,
)
from rlhf_ray.config.jobs.ppo import COST_CRITIC, PPOConfig
from rlhf_ray.config.jobs.row_sources import FileSource
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig, SFTConfig, SupervisedConfig
from rlhf_ray.config.placement import GroupConfig, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath
from rlhf_ray.config.rewards import FunctionReward, ModelReward, RewardConfig
from rlhf_ray.config.run import JobConfig


def groups_of(config: Section) -> dict[str, GroupConfig]:
    """Named groups of nodes of a job."""
    placing = JobConfig | InferenceConfig | FeedbackPageConfig | EvaluateConfig
    return config.groups if isinstance(config, placing) else {}


def answers_of(config: Section) -> dict[KeyPath, AnswerConfig]:
    """Sources of answers of a page for people."""
    if isinstance(config, LabelConfig):
        return {("answers",): config.answers}
    return {("a",): config.a, ("b",): config.b} if isinstance(config, CompareConfig) else {}


def placements_of(config: Section) -> dict[KeyPath, PlacementConfig]:
    """Roles of a job in the order in which they are placed, on which it depends who shares a device with whom.

    PPO has a reference only where KL has a weight, and the policy no adapter to switch off. An evaluation measures only
    where there is a reference, or texts.
    """
    roles: dict[KeyPath, PlacementConfig] = {}
    if isinstance(config, SupervisedConfig):
        roles["trainer",] = config.trainer
    if isinstance(config, PPOConfig):
        roles["policy",] = config.policy
    if isinstance(config, PPOConfig | GenerateConfig | EvaluateConfig):
        roles["rollout",] = config.rollout
    if isinstance(config, PPOConfig):
        roles |= {("critics", name): critic for name, critic in config.critics.items()}
        if config.algorithm.kl.coefficient > 0 and config.policy.lora is None:
            roles["reference",] = config.reference
    if not isinstance(config, IterateConfig):
        roles |= rewards_of(config)
    if isinstance(config, EvaluateConfig) and (config.reference is not None or config.texts is not None):
        roles["measure",] = config.measure
    answers = answers_of(config).items()
    roles |= {(*key, "rollout"): source.rollout for key, source in answers if isinstance(source, RolloutAnswers)}
    return roles


def rewards_of(config: Section) -> dict[KeyPath, RewardConfig]:
    """Reward sources of a job, an oracle and the cost that filters answers among them."""
    found: dict[KeyPath, RewardConfig] = {}
    if isinstance(config, PPOConfig | ScoreConfig | EvaluateConfig):
        found |= {("rewards", index): reward for index, reward in enumerate(config.rewards)}
    if isinstance(config, EvaluateConfig) and config.oracle is not None:
        found["oracle",] = config.oracle
    if isinstance(config, IterateConfig) and isinstance(config.labels, SourceLabels):
        found |= {("labels", "rewards", index): reward for index, reward in enumerate(config.labels.rewards)}
    if isinstance(config, GenerateConfig) and config.safety is not None:
        found["safety", "cost"] = config.safety.cost
    return found


def models_of(config: Section) -> dict[KeyPath, str]:
    """Model directories and hub names that a job loads."""
    found: dict[KeyPath, str] = {}
    if isinstance(config, SupervisedConfig | PPOConfig | GenerateConfig):
        found["model", "path"] = config.model.path
        if config.model.tokenizer:
            found["model", "tokenizer"] = config.model.tokenizer
    if isinstance(config, EvaluateConfig):
        found |= {("models", name, "path"): model.path for name, model in config.models.items()}
        tokenizers = {name: model.tokenizer for name, model in config.models.items()}
        found |= {("models", name, "tokenizer"): path for name, path in tokenizers.items() if path}
    if isinstance(config, IterateConfig):
        found["model",] = config.model
    for key, one in rewards_of(config).items():
        if isinstance(one, ModelReward):
            found[(*key, "path")] = one.path
            found |= {(*key, "ensemble", place): path for place, path in enumerate(one.ensemble)}
    if isinstance(config, PPOConfig):
        critics = config.critics.items()
        found |= {("critics", name, "path"): one.path for name, one in critics if one.path and one.path != "policy"}
    for key, source in answers_of(config).items():
        if not isinstance(source, FileAnswers):
            found[*key, "model", "path"] = source.model.path
    return found


def longest_sample(config: PPOConfig | GenerateConfig | EvaluateConfig) -> int:
    """Tokens of the longest prompt of the data with the longest response."""
    return config.data.max_prompt_tokens + config.rollout.max_new_tokens


def critic_path(config: PPOConfig, name: str) -> str:
    """Model that a critic starts from: its own path, else the first model of what it learns, else the policy."""
    path, learns = config.critics[name].path, "cost" if name == COST_CRITIC else "reward"
    if path is None:
        sources = (source for source in config.rewards if isinstance(source, ModelReward))
        path = next((source.path for source in sources if source.measures == learns), "policy")
    return config.model.path if path == "policy" else path


def functions_of(config: Section) -> dict[KeyPath, str]:
    """Reward functions of a job, as `file.py:name`."""
    sources = rewards_of(config).items()
    return {(*key, "function"): one.function for key, one in sources if isinstance(one, FunctionReward)}


def data_sets_of(config: Section) -> dict[KeyPath, RowSource]:
    """Data sets that a job reads."""
    found: dict[KeyPath, RowSource] = {}
    if isinstance(config, DataJobConfig):
        sources = enumerate(config.sources)
        found |= {("sources", index): source for index, source in sources if isinstance(source, FileSource)}
        examples: list[tuple[KeyPath, RowSource | None]] = []
        if config.classifier is not None:
            examples += [
                (("classifier", "high"), config.classifier.high),
                (("classifier", "low"), config.classifier.low),
            ]
        if config.classes is not None:
            examples.append((("classes", "examples"), config.classes.examples))
        found |= {key: source for key, source in examples if source is not None}
    if isinstance(config, SFTConfig | RewardTrainingConfig | DPOConfig):
        found["data",] = config.data
        if config.evaluation_data:
            found["evaluation_data",] = config.evaluation_data
    if isinstance(config, PPOConfig | GenerateConfig | ScoreConfig | EvaluateConfig):
        found["data",] = config.data
    if isinstance(config, EvaluateConfig) and config.texts:
        found["texts",] = config.texts
    if isinstance(config, IterateConfig):
        found["prompts",] = config.prompts
    if isinstance(config, PPOConfig) and config.ptx:
        found["ptx", "data"] = config.ptx.data
    if isinstance(config, PPOConfig) and config.evaluation.data:
        found["evaluation", "data"] = config.evaluation.data
    found |= {key: source for key, source in answers_of(config).items() if isinstance(source, FileAnswers)}
    if isinstance(config, FeedbackPageConfig) and config.prompts is not None:
        found["prompts",] = config.prompts
    return found

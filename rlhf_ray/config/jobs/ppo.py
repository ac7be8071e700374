"""`rlhf ppo`: the whole of what a user may say about a policy-gradient run."""

from typing import Any, Self

from pydantic import Field, model_validator

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.base import Section
from rlhf_ray.config.data import PromptDataConfig, TextDataConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.numbers import PositiveFloat, PositiveInt, Samples, Tokens
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.run import JobConfig
from rlhf_ray.config.training import CriticConfig, PolicyConfig, ReferenceConfig

COST_CRITIC = "cost"
"""Name of the value model of costs among the critics."""


class EvaluationConfig(Section):
    """Held-out prompts, answered and scored while training."""

    data: PromptDataConfig | None = None
    """Prompts kept for evaluation. None: no evaluation."""

    every_steps: PositiveInt = 20
    """Steps between evaluations; one is also made before the first step and after the last."""

    samples_per_prompt: Samples = 1
    """Responses to each prompt."""


class PretrainingConfig(Section):
    """Texts whose likelihood the policy learns beside the rewards, so that it forgets less (Ouyang et al. 2022)."""

    data: TextDataConfig
    """The texts."""

    coefficient: PositiveFloat = 0.05
    """Weight of their mean negative log-likelihood, gamma in the paper."""

    batch_size: PositiveInt = 32
    """Rows mixed into each optimizer step of the policy."""


def _critics(given: dict[str, Any]) -> dict[str, CriticConfig]:
    algorithm = given.get("algorithm")
    if algorithm is not None and algorithm.has_cost_critic:
        return {"value": CriticConfig(), COST_CRITIC: CriticConfig()}
    return {"value": CriticConfig()} if algorithm is None or algorithm.has_critic else {}


class PPOConfig(JobConfig):
    """Train a policy by reinforcement learning against reward sources."""

    model: ModelConfig
    """The policy's starting point, also the reference."""

    data: PromptDataConfig
    """Prompts."""

    steps: PositiveInt = 100
    """Rollout batches of the run."""

    prompts_per_step: PositiveInt = 64
    """Prompts of one rollout batch."""

    samples_per_prompt: Samples = 1
    """Responses to each prompt."""

    minibatches: PositiveInt = 4
    """Optimizer steps of one pass over the batch."""

    epochs: PositiveInt = 2
    """Passes over each batch."""

    tokens_per_microbatch: Tokens = 8192
    """Tokens, padding counted, of one forward and backward pass on one rank."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """The trained policy."""

    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    """The frozen starting point."""

    rewards: list[RewardConfig] = Field(min_length=1)
    """Reward sources; the reward of a response is their weighted sum, its cost that of sources that measure cost."""

    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """The engines that write samples."""

    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    """How rewards become updates."""

    ptx: PretrainingConfig | None = None
    """Pre-training loss mixed into the policy's (PPO-ptx). None: none."""

    critics: dict[str, CriticConfig] = Field(default_factory=_critics)
    """Value models, by name; by default one, none where the estimator needs none, and a second one, `cost`, where
    algorithm.lagrangian has a cost critic."""

    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Evaluation while training."""

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        samples = self.prompts_per_step * self.samples_per_prompt
        if samples % self.minibatches:
            raise ValueError(
                f"minibatches: {self.minibatches} does not divide the batch of {samples} samples "
                f"(prompts_per_step {self.prompts_per_step} x samples_per_prompt {self.samples_per_prompt})"
            )
        return self

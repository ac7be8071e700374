"""Trained roles: optimizer, schedule, sharding."""

from typing import Annotated, Any, Literal

from pydantic import Field

from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.numbers import Decay, LearningRate, NonNegativeInt, OfIntegers, PositiveFloat, WrittenAsList
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import PlacementConfig

COST_CRITIC = "cost"
"""Name of the value model of costs among the critics."""


class TrainerConfig(PlacementConfig):
    """One model trained by DeepSpeed ranks."""

    learning_rate: LearningRate = 1e-6
    """Peak learning rate of AdamW."""

    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after warm-up; linear and cosine end at 0 on the last step."""

    warmup_steps: NonNegativeInt = 0
    """Optimizer steps over which the learning rate rises from 0 to its peak."""

    weight_decay: float = Field(default=0.0, ge=0, le=100)
    """Decoupled weight decay; biases and norms are spared."""

    betas: Annotated[tuple[Decay, Decay], WrittenAsList] = (0.9, 0.95)
    """Decay rates of AdamW's two moments."""

    epsilon: float = Field(default=1e-8, gt=0, le=1)
    """Term added to AdamW's denominator."""

    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this global norm."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], OfIntegers] = 0
    """DeepSpeed ZeRO stage: 1 shards optimizer state, 2 also gradients, 3 also weights. In bfloat16 stage 0 runs as 1,
    with the same numbers."""

    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""

    lora: LoraConfig | None = None
    """Train a low-rank adapter and leave the model's own weights as they are. None: train all weights."""

    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further DeepSpeed settings (offload and the like), merged over ours and checked by DeepSpeed."""


class PolicyConfig(TrainerConfig):
    """The trained policy."""

    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the weights, moved after each step with this decay. None: none."""

    ema_export: Literal["beside", "instead"] = "beside"
    """Write the average into `final_average` beside `final`, or into `final` instead of the last weights."""

    export_every_steps: NonNegativeInt = 0
    """Also write the policy as a Hugging Face directory after so many steps each, as `exports/step_N_reward_R` with the
    mean reward of step N. 0: only `final`."""


class ReferenceConfig(PlacementConfig):
    """The frozen starting point of the policy."""

    zero_stage: Annotated[Literal[0, 3], OfIntegers] = 0
    """3 shards its weights over its workers; 0 gives each worker all of them."""


class CriticConfig(TrainerConfig):
    """A value model."""

    learning_rate: LearningRate = 9e-6
    """Peak learning rate of AdamW."""

    path: PathText | None = None
    """Model that the critic starts from: `policy`, a directory, or None: the first reward model, for critics.cost the
    first cost model (else the policy)."""

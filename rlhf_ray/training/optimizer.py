"""The optimizer of a rank: AdamW and its learning rate, and DeepSpeed's settings, ours and the user's over them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.training import TrainerConfig

COLLECTIVE_BUCKET = 50_000_000
"""Elements of DeepSpeed's buffers of collectives; small models would otherwise reserve 500 million."""


def effective_stage(trainer: TrainerConfig, dtype: Dtype) -> int:
    """Return the ZeRO stage that DeepSpeed runs.

    In bfloat16, stage 0 runs as stage 1: DeepSpeed adds micro-batches up in float32 only where optimizer state is
    sharded. The numbers are the same; each rank holds less.
    """
    return 1 if dtype == "bfloat16" and trainer.zero_stage == 0 else trainer.zero_stage


def deepspeed_settings(trainer: TrainerConfig, dtype: Dtype, world: int, trainable: bool) -> dict[str, Any]:
    """Make DeepSpeed's configuration for one model.

    Micro-batches are ours: DeepSpeed is told of one per step, and the boundary is set by hand.

    Raises:
        BadInput: the user's settings contradict the fields that own them.
    """
    stage = effective_stage(trainer, dtype)
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "train_batch_size": world,
        "gradient_accumulation_steps": 1,
        # At stage 0 we clip ourselves: DeepSpeed would not tell the norm.
        "gradient_clipping": trainer.max_grad_norm if stage > 0 else 0.0,
        "steps_per_print": None,
        "bf16": {"enabled": dtype == "bfloat16"},
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": COLLECTIVE_BUCKET,
            "allgather_bucket_size": COLLECTIVE_BUCKET,
            # Only with the stages that reduce while the backward pass goes on, and there are no streams on a CPU.
            "overlap_comm": stage >= 2 and trainer.gpus_per_worker > 0,
        },
    }
    if dtype == "bfloat16" and trainable:
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
        # A sum over many ranks in 16 bits loses what small gradients add.
        ours["communication_data_type"] = "fp32"
    given = (trainer.deepspeed.get("zero_optimization") or {}).get("stage", trainer.zero_stage)
    if given != trainer.zero_stage:
        raise BadInput(f"deepspeed.zero_optimization.stage is {given}, but zero_stage is {trainer.zero_stage}")
    merged = _merge(ours, trainer.deepspeed)
    merged["zero_optimization"]["stage"] = stage
    return merged


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what DeepSpeed says against its settings while it starts into an error that the user can act on.

    Raises:
        BadInput: in place of DeepSpeed's own error.
    """
    from deepspeed.runtime.config import DeepSpeedConfigError

    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"deepspeed: {error.title}: {where}: {first['msg']} (given: {first['input']!r})") from error
    except DeepSpeedConfigError as error:
        raise BadInput(f"deepspeed: {error}") from error


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split matrices, which decay, from biases and norm weights, which do not; without frozen parameters."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_adamw(network: nn.Module, trainer: TrainerConfig) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov and Hutter 2019); DeepSpeed's own where it offloads the optimizer to the CPU."""
    groups = parameter_groups(network, trainer.weight_decay)
    settings: dict[str, Any] = {"lr": trainer.learning_rate, "betas": trainer.betas, "eps": trainer.epsilon}
    if offloads_optimizer(trainer):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def offloads_optimizer(trainer: TrainerConfig) -> bool:
    """Tell whether the user asks DeepSpeed to keep the optimizer off the GPU."""
    offload = (trainer.deepspeed.get("zero_optimization") or {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def learning_rate(step: int, trainer: TrainerConfig, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step` (from 0).

    Step w of a warm-up of n steps takes peak (w + 1) / (n + 1). After it the rate stays, or falls to 0, which it
    reaches where step `total_steps` would follow; later steps take 0.
    """
    peak, warmup_steps, shape = trainer.learning_rate, trainer.warmup_steps, trainer.schedule
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if shape == "constant":
        return peak
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (1 - done) if shape == "linear" else peak * (1 + math.cos(math.pi * done)) / 2

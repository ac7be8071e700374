"""AdamW over the parameters of a network."""

import math
from typing import Any, Literal

import torch
from torch import nn

from rlhf_ray.config.training import TrainerConfig


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices, which decay, and biases and norm weights, which do not; frozen parameters are left out."""
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_adamw(network: nn.Module, trainer: TrainerConfig) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter 2019); DeepSpeed's own where it offloads the optimizer to the CPU."""
    groups = parameter_groups(network, trainer.weight_decay)
    settings: dict[str, Any] = {"lr": trainer.learning_rate, "betas": trainer.betas, "eps": trainer.epsilon}
    if offloads_optimizer(trainer):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, adamw_mode=True, **settings)
    return torch.optim.AdamW(groups, fused=True, **settings)


def offloads_optimizer(trainer: TrainerConfig) -> bool:
    """Whether the user asks DeepSpeed to keep the optimizer off the GPU."""
    offload = (trainer.deepspeed.get("zero_optimization") or {}).get("offload_optimizer") or {}
    return offload.get("device", "none") != "none"


def learning_rate(
    step: int, peak: float, warmup_steps: int, total_steps: int, shape: Literal["constant", "linear", "cosine"]
) -> float:
    """Learning rate of optimizer step `step` (from 0).

    Step w of a warm-up of n steps takes peak (w + 1) / (n + 1). After it the rate stays, or falls to 0, which it
    reaches where step `total_steps` would follow; later steps take 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if shape == "constant":
        return peak
    done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return peak * (1 - done) if shape == "linear" else peak * (1 + math.cos(math.pi * done)) / 2

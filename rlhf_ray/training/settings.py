"""The settings that DeepSpeed is started with: ours, and the user's merged over them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pydantic import ValidationError

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.training import TrainerConfig


def effective_stage(trainer: TrainerConfig, dtype: Dtype) -> int:
    """The ZeRO stage that DeepSpeed runs.

    In bfloat16, stage 0 runs as stage 1: DeepSpeed adds micro-batches up in float32 only where optimizer state is
    sharded. The numbers are the same; each rank holds less.
    """
    return 1 if dtype == "bfloat16" and trainer.zero_stage == 0 else trainer.zero_stage


def deepspeed_settings(trainer: TrainerConfig, dtype: Dtype, world: int, trainable: bool) -> dict[str, Any]:
    """DeepSpeed's configuration for one model.

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
            # Small models would otherwise reserve buffers of 500 million elements.
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            "overlap_comm": False,
        },
    }
    if dtype == "bfloat16" and trainable:
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
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

"""Low-rank adapters, under PEFT's names."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.numbers import PositiveFloat

ENGINE_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM keeps room (its `max_lora_rank`)."""

ALL_LINEAR = "all-linear"
"""Stands for all linear layers, as in PEFT."""


def _listed(value: Any) -> Any:
    """Make a list of one name or a list."""
    return [value] if isinstance(value, str) else value


_Modules = Annotated[list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])]


class LoraConfig(Section):
    """A low-rank adapter (LoRA, Hu et al. 2021), trained in place of the model's own weights.

    A scalar head is always trained whole, and saved with the adapter. Biases stay as they are, so that the model with
    its adapter switched off is the one that training began from.
    """

    r: int = Field(default=16, gt=0, le=8192)
    """Rank of the update of each adapted weight."""

    lora_alpha: PositiveFloat = 32
    """The update is scaled by lora_alpha / r."""

    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an adapter's inputs that are dropped while training. None in policy-gradient training."""

    target_modules: _Modules = Field(default=[ALL_LINEAR])
    """Names of the linear layers that get an adapter, such as [q_proj, v_proj]; all-linear: those of all blocks."""

    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) instead (Kalajdzievski 2023)."""

    load_in_4bit: bool = False
    """Keep the frozen weights in 4 bits (QLoRA, Dettmers et al. 2023); needs bitsandbytes, and ZeRO stages to 2."""

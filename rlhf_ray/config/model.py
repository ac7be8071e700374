"""Networks: what to load and how to compute with it."""

from dataclasses import dataclass
from typing import Literal

from rlhf_ray.config.base import Section
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.reading.documents import KeyPath

Dtype = Literal["float32", "bfloat16"]
Attention = Literal["sdpa", "eager", "flash_attention_2"]


class ModelConfig(Section):
    """A causal language model in Hugging Face format."""

    path: PathText
    """Model directory or hub name."""

    tokenizer: PathText | None = None
    """Tokenizer directory or hub name. None: the model's own."""

    chat_template: str | None = None
    """Jinja template, or a file that holds one, for conversational data. None: the tokenizer's own."""

    dtype: Dtype = "bfloat16"
    """Type of forward and backward passes. Master weights and optimizer moments stay float32."""

    attention: Attention = "sdpa"
    """Attention kernel of the trainers. flash_attention_2 packs sequences instead of padding them."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you trust its author."""

    def paths(self) -> dict[KeyPath, str]:
        """Return what is loaded, by key."""
        found: dict[KeyPath, str] = {("path",): self.path}
        if self.tokenizer:
            found["tokenizer",] = self.tokenizer
        return found


@dataclass(frozen=True)
class HeldModel:
    """A model as one worker of a role holds it, which says how much memory it takes."""

    model: ModelConfig
    tokens: int = 0
    """Of a forward pass, padding counted; an engine has a cache in their place."""
    scalar: bool = False
    """Whether a scalar head replaces the output head."""
    copies: int = 1
    """Models of this size."""

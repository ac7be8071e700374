"""Answers of models to the same prompts, and what was found of them: one entry an answer, in one order for all."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64

from rlhf_ray.data.records import Prompt


@dataclass(frozen=True, slots=True)
class Answer:
    """One response of a model."""

    prompt_id: str
    index: int
    """Position among the model's responses to this prompt."""
    prompt: Prompt
    completion: str
    response_ids: list[int]
    finish_reason: str


@dataclass(frozen=True, slots=True)
class TextFit:
    """Likelihood that a model gives held-out texts."""

    logprobs: Float64[np.ndarray, " texts"]
    """Sum over each text's learned tokens, in nats."""
    tokens: Int64[np.ndarray, " texts"]


@dataclass
class ModelResult:
    """All that is known of one model."""

    name: str
    path: str
    answers: list[Answer]
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    """By source, `oracle` and the weighted sum `reward` among them; None where it does not apply or failed."""
    divergence: list[float] | None = None
    """Log-probability under the model less that under the reference, summed over each answer, in nats."""
    texts: TextFit | None = None
    seconds: float | None = None
    """Wall time of the run that made it."""
    peak_memory: int | None = None
    """Bytes that the run's processes held at most."""

    @property
    def prompts(self) -> list[str]:
        """The prompt of each answer, by number."""
        return [answer.prompt_id for answer in self.answers]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each answer."""
        return [len(answer.response_ids) for answer in self.answers]

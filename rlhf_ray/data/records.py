"""The records that travel through the system: samples that a policy wrote, and rankings that people made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int32, Shaped


class Message(TypedDict):
    """One turn of a conversation; chat templates may read further keys, which stand here as the data has them."""

    role: str
    content: str
    """Empty in a turn that only thinks or calls tools."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    weight: NotRequired[int]
    """0: the turn is not learned."""
    tools: NotRequired[list[dict[str, Any]]]
    """JSON schemas of what may be called in the conversation, in its first turn."""


Prompt = str | list[Message]
ASSISTANT = "assistant"
"""Role of the policy."""
EngineFinish = Literal["stop", "length", "abort"]
"""Why an engine wrote no further token."""
FinishReason = Literal[EngineFinish, "turns", "error"]
"""Why a response ended; an episode may have had all its turns, or lost its environment."""


@dataclass(frozen=True, slots=True)
class WeightSpan:
    """Response tokens `start <= t < end` were written by weights of this version."""

    start: int
    end: int
    version: int


TURN_REWARDS = "turn_rewards"
"""Name, in a sample's extras, of what its environment gave for each turn, at the turn's last token."""


@dataclass(slots=True)
class Episode:
    """A sample's knowledge beside its tokens, where an environment answered the policy."""

    turns: list[Message] = field(default_factory=list)
    """All that was said after the prompt, by the policy and by the environment."""
    reward: float | None = None
    """Sum of what the environment gave for the turns. None where it gives none, or failed."""
    failure: tuple[str, str] | None = None
    """What kind of failure of the environment ended it, and what happened."""


@dataclass(slots=True)
class PromptRecord:
    """A prompt as the data cursor hands it out."""

    prompt_id: str
    """Stable over runs: position in the data set."""
    prompt: Prompt
    prompt_ids: Int32[np.ndarray, " prompt"]
    columns: dict[str, Any] = field(default_factory=dict)
    """The data set's other columns, for reward functions."""


@dataclass(slots=True)
class Sample:
    """One response of the policy, with all that is known about it."""

    prompt_id: str
    group_id: str
    """Samples of one prompt in one step share it."""
    index: int
    """Position in the group."""
    attempt: int
    """How often the request was sent before this answer came; 0 at first."""
    seed: int
    prompt: Prompt
    response: str
    prompt_ids: Int32[np.ndarray, " prompt"]
    response_ids: Int32[np.ndarray, " response"]
    written: Bool[np.ndarray, " response"]
    """Tokens that the policy wrote; tool and user tokens are false."""
    behaviour_logprobs: Float32[np.ndarray, " response"]
    """Log-probabilities under the sampling distribution, as the engine computed them; 0 where not written."""
    weight_versions: list[WeightSpan]
    finish_reason: FinishReason
    rewards: dict[str, float | None] = field(default_factory=dict)
    """Score of each source; None where it does not apply."""
    extras: dict[str, Shaped[np.ndarray, " response"]] = field(default_factory=dict)
    """Arrays aligned to the response's tokens."""
    episode: Episode | None = None
    """None where one answer is all."""
    columns: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Responses to one prompt in an order of preference; a pair is a ranking of two."""

    prompt: Prompt
    responses: Sequence[str]
    ranks: Sequence[int]
    """0 is best; equal ranks are ties."""
    columns: Mapping[str, Any] = field(default_factory=dict)

"""Reward sources."""

from typing import Annotated, Literal

from pydantic import Field

from rlhf_ray.config.model import Dtype
from rlhf_ray.config.numbers import AnyFloat, NonNegativeFloat, PositiveInt, Seconds, Share, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.secret_variables import SecretVariable


class RewardSource(PlacementConfig):
    """What all reward sources share."""

    name: str = "reward"
    """Name of the source in metrics and in records; unique."""

    weight: AnyFloat = 1.0
    """Factor of this source in the sum."""

    measures: Literal["reward", "cost"] = "reward"
    """What its scores are: reward to be raised, or cost to be kept under algorithm.lagrangian.cost_limit."""

    failed_scores: Share = 0.1
    """Share of samples whose scoring may fail; they are counted and not learned from. Past it the job stops."""


class ModelReward(RewardSource):
    """A sequence classifier with one output, scoring the last token of prompt and response."""

    kind: Literal["model"] = "model"
    """Chooses this kind."""

    path: PathText
    """Model directory or hub name, with its own tokenizer and chat template."""

    dtype: Dtype = "bfloat16"
    """Type of the forward pass."""

    max_tokens: Tokens = 2048
    """Longer texts lose their beginning, so that the response is always scored."""

    normalise: bool | None = None
    """Scores as distances from their mean over the model's training texts, in units of their deviation there, which
    `rlhf reward` writes beside a model (`score_statistics.json`): one KL coefficient then fits any reward model. None:
    where that file is and the source measures reward; true: the file must be there; false: as the model gives them."""

    ensemble: list[PathText] = Field(default_factory=list)
    """Further members beside `path`, as `rlhf reward` with members makes them. The score is the mean of all members'
    standardised scores less disagreement_penalty times their standard deviation."""

    disagreement_penalty: NonNegativeFloat = 0.0
    """How much the members' disagreement lowers a score (Coste et al. 2024)."""


class FunctionReward(RewardSource):
    """A Python function in a process of its own."""

    kind: Literal["function"] = "function"
    """Chooses this kind."""

    function: PathText
    """`file.py:name`, called as name(prompts, completions, **columns) -> list[float | None]; None does not apply."""

    timeout_seconds: Seconds = 60
    """Limit of one batch; past it the process is replaced and the batch counts as failed."""


class HTTPReward(RewardSource):
    """A service that scores batches over HTTP; docs/running.md has the exact request and response."""

    kind: Literal["http"] = "http"
    """Chooses this kind."""

    url: str
    """Where batches are posted: http:// or https://. Proxies that the environment names are not used."""

    batch_size: PositiveInt = 64
    """Most samples of one request."""

    timeout_seconds: Seconds = 60
    """Limit of one request with all its retries; past it the samples of the request count as failed."""

    secret_variable: SecretVariable | None = None
    """Environment variable whose value is sent as a header, such as `Bearer ...`; it stays out of logs and configs."""

    secret_header: str = "Authorization"
    """Name of that header."""


RewardConfig = Annotated[ModelReward | FunctionReward | HTTPReward, Field(discriminator="kind")]

"""Reward sources. What a kind is stands in its class; `rlhf_ray.scoring.kinds` says who scores for it."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rlhf_ray.config.checks.addresses import service_problems
from rlhf_ray.config.checks.files import function_problem
from rlhf_ray.config.model import Dtype, HeldModel, ModelConfig
from rlhf_ray.config.numbers import AnyFloat, NonNegativeFloat, PositiveInt, Seconds, Share, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.secret_variables import SecretVariable

ORACLE = "oracle"
"""Name of the oracle's scores beside those of the reward sources."""
TOTAL_COLUMN = "reward"
"""Name, and column, of the weighted sum."""


class RewardSource(PlacementConfig):
    """Settings that all reward sources share."""

    is_network: ClassVar[bool] = False
    """Whether its actor computes with a network."""
    has_process: ClassVar[bool] = False
    """Whether its actor keeps a process beside it."""

    name: str = "reward"
    """Name of the source in metrics and in records; unique."""

    weight: AnyFloat = 1.0
    """Factor of this source in the sum."""

    measures: Literal["reward", "cost"] = "reward"
    """What its scores are: reward to be raised, or cost to be kept under algorithm.lagrangian.cost_limit."""

    failed_scores: Share = 0.1
    """Share of samples whose scoring may fail; they are counted and not learned from. Past it the job stops."""

    def model_paths(self) -> dict[KeyPath, str]:
        """Return the model directories and hub names that it loads, by its own keys."""
        return {}

    def held_models(self) -> list[HeldModel]:
        """Return the model that a copy holds; nothing where it holds none."""
        return []

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between its fields, by its own keys."""
        yield from ()

    def missing(self) -> Iterator[Problem]:
        """Find files that are not there, beside models."""
        yield from ()


class ModelReward(RewardSource):
    """A sequence classifier with one output, scoring the last token of prompt and response."""

    is_network = True

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

    def model_paths(self) -> dict[KeyPath, str]:
        """Return those of all members."""
        return {("path",): self.path} | {("ensemble", place): path for place, path in enumerate(self.ensemble)}

    def held_models(self) -> list[HeldModel]:
        """Return all members as one."""
        model = ModelConfig(path=self.path, dtype=self.dtype)
        return [HeldModel(model, self.max_tokens, scalar=True, copies=1 + len(self.ensemble))]

    def problems(self) -> Iterator[Problem]:
        """Find members that say nothing of their own."""
        if self.disagreement_penalty and not self.ensemble:
            text = "one model cannot disagree with itself; name others in `ensemble`"
            yield Problem(("disagreement_penalty",), text)
        members = [self.path, *self.ensemble]
        for place, path in enumerate(self.ensemble):
            if path in members[: place + 1]:
                yield Problem(("ensemble", place), f"{path} is a member already")


class FunctionReward(RewardSource):
    """A Python function in a process of its own."""

    has_process = True

    kind: Literal["function"] = "function"
    """Chooses this kind."""

    function: PathText
    """`file.py:name`, called as name(prompts, completions, **columns) -> list[float | None]; None does not apply."""

    timeout_seconds: Seconds = 60
    """Limit of one batch; past it the process is replaced and the batch counts as failed."""

    def problems(self) -> Iterator[Problem]:
        """Find a function that is not written as one."""
        file, colon, name = self.function.rpartition(":")
        if not (colon and file.endswith(".py") and name.isidentifier()):
            yield Problem(("function",), f"is written file.py:name, not {self.function!r}")

    def missing(self) -> Iterator[Problem]:
        """Find a file that is not there, or has no such function."""
        yield from function_problem(("function",), self.function)


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

    def problems(self) -> Iterator[Problem]:
        """Find an address or a secret that cannot be used."""
        yield from service_problems(self)


RewardConfig = Annotated[ModelReward | FunctionReward | HTTPReward, Field(discriminator="kind")]


def reward_problems(sources: Mapping[KeyPath, RewardConfig]) -> Iterator[Problem]:
    """Find what is wrong with each source, and names that two of them share."""
    seen: dict[str, KeyPath] = {}
    listed = {key: source for key, source in sources.items() if isinstance(key[-1], int)}
    for key, source in listed.items():
        if source.name in seen:
            yield Problem((*key, "name"), f"{source.name!r} also names {'.'.join(map(str, seen[source.name]))}")
        seen.setdefault(source.name, key)
    for key, source in sources.items():
        yield from (Problem((*key, *problem.key), problem.message) for problem in source.problems())

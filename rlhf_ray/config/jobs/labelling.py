"""`rlhf label` and `rlhf compare`: people rank answers, or choose between two checkpoints, in a browser."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.roles import recording_problems
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.model import HeldModel, ModelConfig
from rlhf_ray.config.numbers import Seed, Share, Temperature, Tokens, WrittenAsList
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import ClusterConfig, GroupConfig, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rollout import RolloutConfig

MOST_ANSWERS = 9
"""Longest ranking; K = 4 to 9 in Ouyang et al. 2022, and 2 is a pair."""

SQLITE, POSTGRESQL = "sqlite", "postgresql"

EXPORTS = (".jsonl", ".parquet", ".tsv")
"""Formats of an export, by suffix."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(//)?")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")

LOOPBACK = re.compile(r"localhost|127(\.\d{1,3}){3}|::1")
"""Names that no other machine can be behind."""


class FileAnswers(RowSource):
    """Answers from a file: rows with `prompt` and `responses`, or one `completion` a row, as `rlhf generate` writes."""

    kind: Literal["file"]
    """Chooses this kind."""

    version: str | None = None
    """What wrote the answers, kept with each label. None: the row's own column `model`, else the path."""


class ModelAnswers(Section):
    """Answers that a model directory writes in the page's own process, without Ray."""

    kind: Literal["model"]
    """Chooses this kind."""

    model: ModelConfig
    """The model that answers."""

    temperature: Temperature = 1.0
    """Sampling temperature."""

    max_new_tokens: Tokens = 256
    """Longest answer."""


class RolloutAnswers(Section):
    """Answers that a pool of vLLM engines writes, on this machine or a cluster."""

    kind: Literal["rollout"]
    """Chooses this kind."""

    model: ModelConfig
    """The model that answers."""

    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """The engines."""

    max_prompt_tokens: Tokens = 1024
    """Longest prompt."""


AnswerConfig = Annotated[FileAnswers | ModelAnswers | RolloutAnswers, Field(discriminator="kind")]


class FeedbackPageConfig(JobConfig):
    """Settings that the pages for people share."""

    store: PathText
    """A file of SQLite, or postgresql://user@host/name with its password in PGPASSWORD or ~/.pgpass."""

    prompts: RowSource | None = None
    """Prompts that models answer. Files of answers bring their own."""

    export: PathText | None = None
    """Write what the store holds to this file, .jsonl, .parquet or .tsv, and leave without a page."""

    host: str = "127.0.0.1"
    """Address to listen on. Any other than loopback asks each visitor for a token."""

    port: int = Field(default=8904, ge=1, le=65535)
    """Port to listen on."""

    token_file: PathText | None = None
    """File that holds the token, made when it is not there. None: a new token at each start, shown on the console."""

    allowed_hosts: Annotated[tuple[str, ...], WrittenAsList] = ()
    """Names besides loopback under which a proxy shows the page, such as `label.example.com`; requests under any other
    name are refused where no token is asked for."""

    language: Literal["zh", "en"] = "zh"
    """Language in which the page opens; each visitor can switch it."""

    overlap: Share = 0.1
    """Share of the prompts that go to several annotators, so that their agreement can be measured."""

    overlap_annotators: int = Field(default=2, ge=2, le=1000)
    """Annotators who get such a prompt."""

    lease_minutes: float = Field(default=30, ge=0.001, le=1_000_000)
    """How long a prompt is kept for an annotator since the last click; then another may get it."""

    seed: Seed = 0
    """Seeds sampling, the order of prompts and of answers, and which prompts overlap."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Which Ray to use where answers come from engines."""

    groups: dict[str, GroupConfig] = Field(default_factory=lambda: {"main": GroupConfig()})
    """Named groups of nodes; engines say which one they are on."""

    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    """Environment variables of the workers."""

    def answer_sources(self) -> dict[KeyPath, AnswerConfig]:
        """Return where answers come from."""
        return {}

    def engines(self) -> dict[KeyPath, RolloutConfig]:
        """Return the engines that write answers."""
        sources = self.answer_sources().items()
        return {(*key, "rollout"): source.rollout for key, source in sources if isinstance(source, RolloutAnswers)}

    def node_groups(self) -> Mapping[str, GroupConfig]:
        """Return `groups`."""
        return self.groups

    def worker_environment(self) -> EnvironmentConfig:
        """Return `environment`."""
        return self.environment

    def placements(self) -> dict[KeyPath, PlacementConfig]:
        """Return the engines."""
        return dict(self.engines())

    def model_paths(self) -> dict[KeyPath, str]:
        """Return the models that answer."""
        sources = self.answer_sources().items()
        return {(*key, "model", "path"): one.model.path for key, one in sources if not isinstance(one, FileAnswers)}

    def held_models(self) -> dict[KeyPath, list[HeldModel]]:
        """Return those of the engines."""
        sources = self.answer_sources().items()
        return {(*key, "rollout"): [HeldModel(one.model)] for key, one in sources if isinstance(one, RolloutAnswers)}

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the files of answers, and the prompts."""
        sources = self.answer_sources().items()
        found: dict[KeyPath, RowSource] = {key: source for key, source in sources if isinstance(source, FileAnswers)}
        return found | ({("prompts",): self.prompts} if self.prompts is not None else {})

    def results(self) -> str:
        """Return the store of labels."""
        return self.store

    def output_files(self) -> dict[KeyPath, str]:
        """Return the export."""
        return {} if self.export is None else {("export",): self.export}

    def files_read(self) -> dict[str, str]:
        """Return the data sets, and the store."""
        return super().files_read() | {"store": self.store.removeprefix("sqlite:///")}

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        for key, rollout in self.engines().items():
            yield from recording_problems(key, rollout, "the store of labels keeps all answers")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the page."""
        return LOOPBACK.fullmatch(self.host) is not None

    @field_validator("store")
    @classmethod
    def _known_store(cls, store: str) -> str:
        scheme = _SCHEME.match(store)
        if not store.strip():
            raise ValueError("names no file")
        if scheme is None:
            return store
        if scheme[1] not in (SQLITE, POSTGRESQL):
            raise ValueError(f"is a file of SQLite or a URL postgresql://..., not of kind {scheme[1]!r}")
        if scheme[2] is None or (scheme[1] == SQLITE and not re.match(r"sqlite:///.", store)):
            raise ValueError(f"is written {scheme[1]}:///path for SQLite, postgresql://user@host/name for PostgreSQL")
        if scheme[1] == POSTGRESQL:
            _check_postgresql(store)
        return store

    @field_validator("allowed_hosts")
    @classmethod
    def _bare_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if _HOST.fullmatch(name) is None:
                raise ValueError(f"holds bare names, such as label.example.com, not {name!r}")
        return names

    @field_validator("export")
    @classmethod
    def _known_export(cls, export: str | None) -> str | None:
        if export is not None and not export.endswith(EXPORTS):
            raise ValueError(f"ends in {', '.join(EXPORTS[:-1])} or {EXPORTS[-1]}, not {export!r}")
        return export


def _check_postgresql(store: str) -> None:
    parts = urlsplit(store)
    # The message must not repeat the password.
    if parts.password is not None or "password=" in parts.query:
        raise ValueError("holds a password; leave it out, and give it in PGPASSWORD or ~/.pgpass")
    if not parts.path.strip("/"):
        raise ValueError("names no database: postgresql://user@host/name")


class LabelConfig(FeedbackPageConfig):
    """Rank answers in a browser; the labels train reward models."""

    answers: AnswerConfig
    """Where answers come from."""

    answers_per_prompt: int = Field(default=4, ge=2, le=MOST_ANSWERS)
    """Answers to each prompt; where a file has more, the first of them."""

    def answer_sources(self) -> dict[KeyPath, AnswerConfig]:
        """Return `answers`."""
        return {("answers",): self.answers}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.answers, FileAnswers) and self.prompts is not None:
            raise ValueError("prompts: answers of kind file bring their prompts; leave this out")
        return self


class CompareConfig(FeedbackPageConfig):
    """Choose between the answers of two checkpoints, blindly, in a browser."""

    a: AnswerConfig
    """First checkpoint."""

    b: AnswerConfig
    """Second checkpoint."""

    def answer_sources(self) -> dict[KeyPath, AnswerConfig]:
        """Return both sides."""
        return {("a",): self.a, ("b",): self.b}

    @model_validator(mode="after")
    def _check(self) -> Self:
        files = [isinstance(side, FileAnswers) for side in (self.a, self.b)]
        if all(files) and self.prompts is not None:
            raise ValueError("prompts: answers of kind file bring their prompts; leave this out")
        if not any(files) and self.prompts is None:
            raise ValueError("prompts: two models need prompts to answer")
        return self

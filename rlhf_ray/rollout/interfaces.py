"""The seams of a rollout: below it an engine, wherever that lives; above it any way from a prompt to samples."""

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleFailed
from rlhf_ray.data.records import PromptRecord, Sample
from rlhf_ray.rollout.requests import GenerationRequest, GenerationResult

Group = list[Sample]
"""All samples of one prompt, index 0 first."""


class Groups(Protocol):
    """Groups of a batch of prompts as they finish, from a rollout that already runs."""

    def __iter__(self) -> Iterator[Group]: ...

    def poll(self) -> Group | None:
        """Return a group that has come, without waiting and without raising; None where none has. Iterating goes on
        after it."""
        ...

    def close(self) -> None:
        """End what still runs; no more groups come."""
        ...


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts that are answered together, and how."""

    prompts: Sequence[PromptRecord]
    step: int
    """Of the run; with the seed it decides the seeds of requests."""
    version: int
    """Of the weights that write the answers, at least."""
    samples_per_prompt: int
    """Responses to each prompt, the greedy one included."""
    seed: int
    greedy_last: bool = False
    """Whether the last response to each prompt is the most likely one, token by token, instead of drawn."""
    answered: frozenset[str] = frozenset()
    """Ids of groups that need no answer any more."""


class GroupSource(Protocol):
    """Whatever answers prompts: the pool, a recording of it, or a replay instead of it."""

    def run(self, batch: PromptBatch) -> Groups:
        """Start to answer a batch, at once; returns the groups to come."""
        ...


class EngineClient(Protocol):
    """An engine as the pool sees it. All methods raise `RoleDied` when the engine is gone."""

    @property
    def name(self) -> str:
        """Name for messages, with the machine or rank where that helps."""
        ...

    def generate(
        self, requests: Sequence[GenerationRequest], *, queued: bool
    ) -> AsyncGenerator[Sequence[GenerationResult], None]:
        """Answer `requests`, each once, in bunches as they finish.

        `queued`: let none begin before all of them wait in the engine, so that arrival times cannot matter.
        Closing the iterator early ends the requests that still run.
        """
        ...


class Generate(Protocol):
    """The engine as a rollout sees it: one request in, its answer out."""

    async def __call__(self, request: GenerationRequest, *, together: int = 1) -> GenerationResult:
        """Generate; where the engine is lost, another one is asked instead.

        `together`: how many requests the rollout makes now, this one among them. In deterministic mode none of them
        leaves before all are there, and `RoleDied` and `DeadlineExceeded` are raised, which a rollout lets pass: it is
        run again from its beginning.
        """
        ...


@dataclass(frozen=True, slots=True)
class RolloutTask:
    """One prompt of a step and what its samples are called."""

    prompt: PromptRecord
    samples: int
    """Responses wanted."""
    group_id: str
    """Given to all samples of this task; unique in a run."""
    request_id: str
    """A rollout of several turns adds to it, so that no two requests share one."""
    seed: int
    """Depends on run, step and prompt alone; a rollout of several turns derives one for each turn."""
    attempt: int = 0
    greedy_last: bool = False
    """Whether the last of the responses is the most likely one, token by token, instead of drawn."""


class Rollout(Protocol):
    """A prompt turned into samples with the help of one engine, in as many turns as it takes."""

    async def __call__(self, generate: Generate, task: RolloutTask) -> list[Sample]:
        """Return `task.samples` samples, index 0 first; tokens that the policy did not write have `written` false."""
        ...


ENGINE_LOST = (RoleDied, DeadlineExceeded)
"""What an engine client raises, or its deadline, when the engine is to blame and not the request."""


class NoEngineLeft(RoleFailed):
    """Every engine has failed and none came back."""


class RequestAborted(RoleFailed):
    """The engine lives but dropped a request; it can be sent again, there or elsewhere."""


class BadRollout(RuntimeError):
    """An engine or a rollout returned what was not asked for; sending it again would not help."""

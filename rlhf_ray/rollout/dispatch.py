"""A step's tasks sent to engines, and sent again when an engine is lost."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from queue import SimpleQueue

from rlhf_ray.data.records import Sample
from rlhf_ray.rollout.interfaces import ENGINE_LOST, BadRollout, Generate, RequestAborted, Rollout, RolloutTask
from rlhf_ray.rollout.requests import GenerationRequest, GenerationResult
from rlhf_ray.rollout.seats import Seat, Seating

# A prompt whose engine was lost this often is more likely the cause than the victim.
MAX_ATTEMPTS = 5
SEND_AGAIN = (*ENGINE_LOST, RequestAborted)


@dataclass(frozen=True, slots=True)
class GroupFinished:
    """All samples of task number `order`."""

    order: int
    samples: list[Sample]


@dataclass(frozen=True, slots=True)
class RequestEnded:
    """A request came to its end, by an answer or an error: a sign of life of a rollout that has several turns."""


@dataclass(frozen=True, slots=True)
class EngineLost:
    """An engine failed; whoever takes the groups may bring it back."""


@dataclass(frozen=True, slots=True)
class StepFailed:
    """No more groups come."""

    error: BaseException


Event = GroupFinished | RequestEnded | EngineLost | StepFailed


class Dispatch:
    """One step: each task goes to the engine with the fewest samples to return.

    If that is lost, its requests go to another, and the rollouts go on from there: no turn of an episode is lost.
    """

    def __init__(self, seating: Seating, rollout: Rollout, tasks: Sequence[RolloutTask], version: int) -> None:
        self.events: SimpleQueue[Event] = SimpleQueue()
        self._seating = seating
        self._rollout = rollout
        self._tasks = tasks
        self._version = version

    async def run(self) -> None:
        """Finish every task; what happens goes to `events`, errors included."""
        try:
            async with asyncio.TaskGroup() as group:
                for work in self._works():
                    group.create_task(work)
        except BaseExceptionGroup as errors:
            self.events.put(StepFailed(errors.exceptions[0]))
        except asyncio.CancelledError:
            self.events.put(StepFailed(BadRollout("the collection was closed before all groups had come")))
            raise

    def _works(self) -> list[Coroutine[None, None, None]]:
        return [self._finish(order, task) for order, task in enumerate(self._tasks)]

    async def _finish(self, order: int, task: RolloutTask) -> None:
        self.events.put(GroupFinished(order, await self._rollout(self._anywhere(order, task), task)))

    def _anywhere(self, order: int, task: RolloutTask) -> Generate:
        """Return what asks one engine as long as it lives, since it has read the earlier turns, then another."""
        home: Seat | None = None

        async def generate(request: GenerationRequest, *, together: int = 1) -> GenerationResult:
            nonlocal home
            attempt, is_told = 0, False
            while True:
                if home is None or home.lost is not None:
                    if not is_told and (home is not None or not self._seating.serving):
                        # It died between two turns, when nobody waited for an answer and could tell.
                        self.events.put(EngineLost())
                    home, is_told = await self._seating.least_loaded(), False
                seat = home
                sent = replace(request, request_id=f"{request.request_id}/{attempt}") if attempt else request
                try:
                    with seat.rollout(order, request.n) as send:
                        result = await self._heard(seat, task, send)(sent, together=together)
                except SEND_AGAIN as error:
                    attempt = self._count_attempt(seat, task, attempt, error)
                    is_told = isinstance(error, ENGINE_LOST)
                else:
                    completions = [replace(one, attempt=attempt) for one in result.completions]
                    return GenerationResult(request.request_id, completions)

        return generate

    def _heard(self, seat: Seat, task: RolloutTask, generate: Generate) -> Generate:
        """Return `generate` with a sign of life after each answer, and without answers of older weights."""

        async def heard(request: GenerationRequest, *, together: int = 1) -> GenerationResult:
            try:
                result = await generate(request, together=together)
            finally:
                self.events.put(RequestEnded())
            for completion in result.completions:
                stale = [span.version for span in completion.weight_spans if span.version < self._version]
                if stale:
                    raise BadRollout(
                        f"{seat.engine.name} answered prompt {task.prompt.prompt_id} with weights of version "
                        f"{stale[0]}, but the step is at version {self._version}: its weights were not updated"
                    )
            return result

        return heard

    def _count_attempt(self, seat: Seat, task: RolloutTask, attempt: int, error: Exception) -> int:
        """Give up an engine that is lost, and return the number of the next attempt."""
        if isinstance(error, ENGINE_LOST):
            seat.lose(error)
            self.events.put(EngineLost())
        if attempt + 1 == MAX_ATTEMPTS:
            raise BadRollout(
                f"prompt {task.prompt.prompt_id} was sent {MAX_ATTEMPTS} times without an answer; last: {error}"
            ) from error
        return attempt + 1


class DispatchInOrder(Dispatch):
    """One step in deterministic mode: task i belongs to the queue of engine i modulo their number.

    A queue runs alone on its engine and all its tasks wait there before any begins. If the engine is lost, the whole
    queue runs again, since what else ran beside a request can change its last bits.
    """

    def _works(self) -> list[Coroutine[None, None, None]]:
        engines = len(self._seating.seats)
        numbered = list(enumerate(self._tasks))
        return [self._finish_queue(rank, numbered[rank::engines]) for rank in range(engines)]

    async def _finish_queue(self, home: int, queue: list[tuple[int, RolloutTask]]) -> None:
        done: set[int] = set()
        while len(done) < len(queue):
            seat = await self._seating.at(home)
            async with seat.alone:
                outcomes = await asyncio.gather(
                    *(self._finish_once(seat, order, task, done) for order, task in queue), return_exceptions=True
                )
            lost = [o for o in outcomes if isinstance(o, SEND_AGAIN)]
            other = [o for o in outcomes if isinstance(o, BaseException) and not isinstance(o, SEND_AGAIN)]
            if other:
                raise other[0]
            if lost:
                queue = [(order, self._again(seat, task, lost[0])) for order, task in queue]

    def _again(self, seat: Seat, task: RolloutTask, error: Exception) -> RolloutTask:
        """Return the same task to be sent once more: same seed, a request id of its own."""
        attempt = self._count_attempt(seat, task, task.attempt, error)
        return replace(task, attempt=attempt, request_id=f"{task.request_id.rsplit('/', 1)[0]}/{attempt}")

    async def _finish_once(self, seat: Seat, order: int, task: RolloutTask, done: set[int]) -> None:
        with seat.rollout(order, task.samples) as generate:
            samples = await self._rollout(self._heard(seat, task, generate), task)
        if order not in done:
            done.add(order)
            self.events.put(GroupFinished(order, samples))

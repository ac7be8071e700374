"""One engine's place in the pool: what runs there, and requests of many rollouts joined into few calls."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleError, RoleLost
from rlhf_ray.rollout.interfaces import ENGINE_LOST, BadRollout, EngineClient, Generate, NoEngineLeft, RequestAborted
from rlhf_ray.rollout.requests import GenerationRequest, GenerationResult


@dataclass(slots=True)
class _Waiting:
    request: GenerationRequest
    order: int
    together: int
    answer: "asyncio.Future[GenerationResult]"


class Seat:
    """An engine, until it fails; a new engine gets a new seat. Lives on the pool's event loop.

    Requests made in one turn of the loop leave in one call. With `queued`, they leave once every rollout on the
    engine waits for an answer, ordered by rollout and id: then neither arrival times nor other engines can matter.
    """

    def __init__(self, engine: EngineClient, rank: int, *, queued: bool, deadline_seconds: float) -> None:
        self.engine = engine
        self.rank = rank
        self.load = 0
        """Samples that rollouts here still have to return."""
        self.lost: Exception | None = None
        """Why this seat serves no more."""
        self.alone = asyncio.Lock()
        """Held by the one queue that runs here in deterministic mode."""
        self._queued = queued
        self._deadline = deadline_seconds
        self._rollouts = 0
        self._idle_since = time.monotonic()
        self._idle_seconds = 0.0
        self._waiting: list[_Waiting] = []
        self._calls: dict[asyncio.Task[None], dict[str, asyncio.Future[GenerationResult]]] = {}
        self._flush: asyncio.Handle | None = None

    @contextmanager
    def rollout(self, order: int, samples: int) -> Iterator[Generate]:
        """Take part as rollout number `order` of the step, and get the engine's `generate`."""
        self._count_idle()
        self._rollouts += 1
        self.load += samples

        async def generate(request: GenerationRequest, *, together: int = 1) -> GenerationResult:
            return await self._generate(request, order, together)

        try:
            yield generate
        finally:
            self._count_idle()
            self._rollouts -= 1
            self.load -= samples
            self._schedule_flush()

    def take_idle_seconds(self) -> float:
        """Return for how long nothing ran here since the last call, or the start."""
        self._count_idle()
        taken, self._idle_seconds = self._idle_seconds, 0.0
        return taken

    def _count_idle(self) -> None:
        """Add the time since the last change, if nothing ran in it."""
        now = time.monotonic()
        if not self._rollouts:
            self._idle_seconds += now - self._idle_since
        self._idle_since = now

    def lose(self, error: Exception) -> None:
        """Serve no more: everything that waits here fails with `error`."""
        if self.lost is not None:
            return
        self.lost = error
        answers = [w.answer for w in self._waiting]
        for open_answers in self._calls.values():
            answers += open_answers.values()
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
        self.cancel()

    def cancel(self) -> None:
        """End all calls that run."""
        self._waiting.clear()
        for call in self._calls:
            call.cancel()

    async def _generate(self, request: GenerationRequest, order: int, together: int) -> GenerationResult:
        if self.lost is not None:
            raise self.lost
        answer: asyncio.Future[GenerationResult] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(request, order, together, answer))
        self._schedule_flush()
        try:
            async with asyncio.timeout(self._deadline):
                return await answer
        except TimeoutError as error:
            message = (
                f"{self.engine.name} did not answer request {request.request_id} "
                f"within {self._deadline:g} s (cluster.deadlines.call_seconds)"
            )
            raise DeadlineExceeded(message, "rollout", self.rank, "generate") from error
        except asyncio.CancelledError:
            self._forget(request.request_id)
            raise

    def _forget(self, request_id: str) -> None:
        for call, answers in self._calls.items():
            # A call that nobody waits for any more ends, so that its engine is free for the next step.
            if answers.pop(request_id, None) is not None and not answers:
                call.cancel()

    def _schedule_flush(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_soon(self._send_waiting)

    def _send_waiting(self) -> None:
        self._flush = None
        self._waiting = [w for w in self._waiting if not w.answer.done()]
        if not self._waiting or (self._queued and self._waiting_rollouts() < self._rollouts):
            return
        batch, self._waiting = sorted(self._waiting, key=lambda w: (w.order, w.request.request_id)), []
        answers = {w.request.request_id: w.answer for w in batch}
        call = asyncio.get_running_loop().create_task(self._receive([w.request for w in batch], answers))
        self._calls[call] = answers
        call.add_done_callback(self._calls.pop)

    def _waiting_rollouts(self) -> int:
        """Count the rollouts that have made all the requests that they make now."""
        made = Counter(w.order for w in self._waiting)
        return len({w.order for w in self._waiting if made[w.order] >= w.together})

    async def _receive(
        self, requests: list[GenerationRequest], answers: dict[str, "asyncio.Future[GenerationResult]"]
    ) -> None:
        try:
            # Closing tells the engine to drop what still runs when this call is cancelled.
            async with aclosing(self.engine.generate(requests, queued=self._queued)) as bunches:
                async for bunch in bunches:
                    for result in bunch:
                        self._deliver(result, answers)
            if answers:
                raise BadRollout(f"{self.engine.name} ended without answering requests {', '.join(list(answers)[:3])}")
        except ENGINE_LOST as error:
            self.lose(error)
        except Exception as error:
            for answer in answers.values():
                if not answer.done():
                    answer.set_exception(error)

    def _deliver(self, result: GenerationResult, answers: dict[str, "asyncio.Future[GenerationResult]"]) -> None:
        answer = answers.pop(result.request_id, None)
        if answer is None or answer.done():
            return
        if any(completion.finish_reason == "abort" for completion in result.completions):
            message = f"{self.engine.name} aborted request {result.request_id}"
            answer.set_exception(RequestAborted(message, "rollout", self.rank, "generate"))
        else:
            answer.set_result(result)


class Seating:
    """The seats of a pool. Lives on the pool's event loop.

    `restorable`: whether somebody will try to bring lost engines back, so that waiting for them makes sense.
    """

    def __init__(
        self, engines: Sequence[EngineClient], *, queued: bool, deadline_seconds: float, restorable: bool
    ) -> None:
        self._queued = queued
        self._deadline = deadline_seconds
        self._restorable = restorable
        self._given_up: dict[int, RoleError] = {}
        self._changed = asyncio.Event()
        self.seats = [self._seat(engine, rank) for rank, engine in enumerate(engines)]

    @property
    def serving(self) -> list[Seat]:
        """Seats whose engines have not failed."""
        return [seat for seat in self.seats if seat.lost is None]

    @property
    def restorable(self) -> list[Seat]:
        """Lost seats that may get an engine again."""
        return [s for s in self.seats if self._restorable and s.lost is not None and s.rank not in self._given_up]

    async def least_loaded(self) -> Seat:
        """Return the serving seat with the fewest samples to return; wait for a restart if none serves.

        Raises NoEngineLeft.
        """
        while not self.serving:
            await self._change()
        return min(self.serving, key=lambda seat: (seat.load, seat.rank))

    async def at(self, rank: int) -> Seat:
        """Seat `rank`, waiting for its restart; another one when it does not come back. Raises NoEngineLeft."""
        while self.seats[rank] in self.restorable:
            await self._change()
        return self.seats[rank] if self.seats[rank].lost is None else await self.least_loaded()

    def settle(self, rank: int, engine: EngineClient | RoleError) -> None:
        """Seat a new engine, or give the place up for the reason given."""
        if isinstance(engine, RoleError):
            self._given_up[rank] = engine
            self.seats[rank].lose(RoleLost(f"rollout engine {rank} was given up", "rollout", rank, "restart"))
        else:
            self._given_up.pop(rank, None)
            self.seats[rank] = self._seat(engine, rank)
        self._changed.set()
        self._changed = asyncio.Event()

    def _seat(self, engine: EngineClient, rank: int) -> Seat:
        return Seat(engine, rank, queued=self._queued, deadline_seconds=self._deadline)

    def no_engine_left(self) -> NoEngineLeft:
        """Make the error of a pool whose engines are all lost, with why each is."""
        reasons = "; ".join(map(self._why_lost, self.seats))
        return NoEngineLeft(f"no rollout engine is left: {reasons}", "rollout", None, "generate")

    def _why_lost(self, seat: Seat) -> str:
        restart = self._given_up.get(seat.rank)
        return _in_short(seat.lost) if restart is None else f"{_in_short(seat.lost)}; its restart: {_in_short(restart)}"

    async def _change(self) -> None:
        if not self.serving and not self.restorable:
            raise self.no_engine_left()
        await self._changed.wait()


def _in_short(error: Exception | None) -> str:
    """Return what an error says, without the traceback of a rank."""
    return str(error.args[0] if isinstance(error, RoleError) else error)

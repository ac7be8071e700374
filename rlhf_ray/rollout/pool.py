"""The pool in front of the rollout engines: prompts go out to the least loaded one, finished groups stream back."""

import asyncio
import hashlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleError
from rlhf_ray.rollout.collection import Collection
from rlhf_ray.rollout.dispatch import Dispatch, DispatchInOrder
from rlhf_ray.rollout.interfaces import EngineClient, PromptBatch, Rollout, RolloutTask
from rlhf_ray.rollout.seats import Seating

# Engines take signed 64-bit seeds and add the sample's index.
_SEED_BITS = 62


def prompt_seed(run_seed: int, step: int, prompt_id: str, occurrence: int = 0) -> int:
    """Return a seed in [0, 2**62) that is the same in every process and on every machine.

    `occurrence` counts earlier appearances of the prompt in the step, so that a prompt drawn twice is answered anew.
    """
    words = f"{run_seed}\n{step}\n{occurrence}\n{prompt_id}".encode()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "big") >> (64 - _SEED_BITS)


def make_tasks(batch: PromptBatch, *, run: int) -> list[RolloutTask]:
    """Make one task for each prompt that is not answered, in order.

    `run` numbers the calls of a pool and keeps request ids apart.
    """
    seen: Counter[str] = Counter()
    tasks = []
    for prompt in batch.prompts:
        occurrence = seen[prompt.prompt_id]
        seen[prompt.prompt_id] += 1
        group_id = f"{batch.step}/{prompt.prompt_id}" + (f"/{occurrence}" if occurrence else "")
        if group_id in batch.answered:
            continue
        tasks.append(
            RolloutTask(
                prompt=prompt,
                samples=batch.samples_per_prompt,
                group_id=group_id,
                request_id=f"{run}/{group_id}/0",
                seed=prompt_seed(batch.seed, batch.step, prompt.prompt_id, occurrence),
                greedy_last=batch.greedy_last,
            )
        )
    return tasks


Restore = Callable[[int, Exception], EngineClient | RoleError]
"""Brings engine number i back after its error, with the current weights, or returns why that cannot be done."""

LOOP_SECONDS = 60.0
"""For the pool's own thread to take up what it is told, which takes a moment unless a rollout blocks it."""

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class RolloutPool:
    """Engines and the event loop, in a thread of its own, that talks to them.

    Engines that fail are left out, and what they had not finished is done again from the same seeds on the others. With
    `restore`, the pool asks for each lost engine back; it does so in the thread that takes groups from `run` (between
    two groups) or calls a method here, so that the driver's other work and a restart never interleave.

    In deterministic mode prompt i goes to engine i modulo their number, all requests of an engine wait in it before any
    begins, groups come in prompt order, and the queue of an engine that failed is repeated as a whole.
    """

    def __init__(
        self,
        engines: Sequence[EngineClient],
        rollout: Rollout,
        *,
        deadline_seconds: float,
        deterministic: bool = False,
        restore: Restore | None = None,
    ) -> None:
        if not engines:
            raise ValueError("a rollout pool needs at least one engine")
        self._rollout = rollout
        self._deadline = deadline_seconds
        self._deterministic = deterministic
        self._restore = restore
        self._runs = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout-pool", daemon=True)
        self._thread.start()
        self._seating = Seating(
            engines, queued=deterministic, deadline_seconds=deadline_seconds, restorable=restore is not None
        )

    def run(self, batch: PromptBatch) -> Collection:
        """Start the responses to a batch, and return an iterator over the finished groups.

        Generation runs whether or not groups are taken. Equal seeds, steps and prompts give equal request seeds.

        Raises:
            NoEngineLeft: no engine is left; at the start, or when a group is taken.
            BadRollout: when a group is taken: answers are not what was asked for, or older weights wrote them. Whatever
                a rollout itself raises comes at that time too.
        """
        self.restore_lost()
        tasks = make_tasks(batch, run=self._runs)
        self._runs += 1
        kind = DispatchInOrder if self._deterministic else Dispatch
        dispatch = kind(self._seating, self._rollout, tasks, batch.version)
        running = self._on_loop(dispatch.run())
        return Collection(
            dispatch.events,
            running,
            tasks,
            in_order=self._deterministic,
            engine_lost=self.restore_lost,
            deadline_seconds=self._deadline,
        )

    @property
    def serving(self) -> list[int]:
        """Numbers of the engines that have not failed."""
        return [seat.rank for seat in self._seating.serving]

    def restore_lost(self) -> None:
        """Ask for each lost engine back. Without a `restore` callback, they stay out.

        Raises:
            NoEngineLeft: none serves then, or will.
        """
        for seat in self._seating.restorable:
            if self._restore is not None and seat.lost is not None:
                self._settle(seat.rank, self._restore(seat.rank, seat.lost))
        if not self.serving and not self._seating.restorable:
            raise self._seating.no_engine_left()

    def take_idle_seconds(self) -> float:
        """Return for how long an engine had nothing to write since the last call, mean of those that serve."""

        async def take() -> float:
            seats = self._seating.serving
            return sum(seat.take_idle_seconds() for seat in seats) / max(len(seats), 1)

        return self._tell(take(), "take_idle_seconds")

    def replace(self, rank: int, engine: EngineClient | RoleError) -> None:
        """Let a new engine take place `rank`, for instance after a restart; an error gives the place up."""
        self._settle(rank, engine)

    def close(self) -> None:
        """End what runs and stop the thread. The engines themselves belong to whoever started them."""
        if self._loop.is_closed():
            return
        try:
            self._tell(self._cancel_all(), "close")
        except DeadlineExceeded as error:
            # Most often there is an error under way already, which says more; the thread ends with the process.
            logger.warning("%s; its thread is left behind", error)
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _settle(self, rank: int, engine: EngineClient | RoleError) -> None:
        async def settle() -> None:
            self._seating.settle(rank, engine)

        self._tell(settle(), "restart")

    def _tell(self, work: "Coroutine[Any, Any, Result]", phase: str) -> Result:
        """Let the pool's thread do something short, and wait for it."""
        try:
            return self._on_loop(work).result(LOOP_SECONDS)
        except TimeoutError:
            message = f"rollout: a rollout blocks the pool's thread, which did not {phase} within {LOOP_SECONDS:g} s"
            raise DeadlineExceeded(message, "rollout", None, phase) from None

    def _on_loop(self, work: "Coroutine[Any, Any, Result]") -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _cancel_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

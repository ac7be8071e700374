"""The finished groups of a step, as an iterator in the driver's thread."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Self

from rlhf_ray.cluster.errors import DeadlineExceeded
from rlhf_ray.data.records import Sample
from rlhf_ray.rollout.dispatch import EngineLost, Event, GroupFinished, RequestEnded, StepFailed
from rlhf_ray.rollout.interfaces import RolloutTask

OWN_ERROR_SECONDS = 60.0
"""Whoever takes groups waits this much longer than a request, whose own error names its engine."""


@dataclass(slots=True)
class CollectionProgress:
    """Progress of a collection."""

    groups: int
    """Groups asked for."""
    finished: int = 0
    """Groups that have come, taken or not."""
    samples: int = 0
    tokens: int = 0
    """Response tokens of the groups that have come."""

    def count(self, group: list[Sample]) -> None:
        """Count a group that has come."""
        self.finished += 1
        self.samples += len(group)
        self.tokens += sum(len(sample.response_ids) for sample in group)


class Collection:
    """Iterator over groups, each a list of samples by index.

    Groups come as they finish, or in prompt order with `in_order`. Lost engines are reported to `engine_lost` from
    within `next`, which raises DeadlineExceeded when nothing at all happens for longer than a request may take
    (`deadline_seconds`): no answer, no lost engine. `poll` reports and raises nothing: that waits for the next `next`,
    since an engine may come back only while the policy does not learn. Closing ends what still runs; leaving the
    `with` block, or an error, closes too.
    """

    def __init__(
        self,
        events: "SimpleQueue[Event]",
        running: "Future[None]",
        tasks: Sequence[RolloutTask],
        *,
        in_order: bool,
        engine_lost: Callable[[], None],
        deadline_seconds: float,
    ) -> None:
        self.progress = CollectionProgress(groups=len(tasks))
        self._events = events
        self._running = running
        self._in_order = in_order
        self._engine_lost = engine_lost
        self._deadline = deadline_seconds
        self._ready: dict[int, list[Sample]] = {}
        self._given = 0
        self._put_off: list[Event] = []
        """Events that `poll` met and left to `next`."""

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> list[Sample]:
        try:
            while self._given < self.progress.groups:
                order = self._next_ready()
                if order is not None:
                    self._given += 1
                    return self._ready.pop(order)
                self._handle(self._next_event())
        except BaseException:
            self.close()
            raise
        raise StopIteration

    def poll(self) -> list[Sample] | None:
        """Return the next group if it has come."""
        with suppress(Empty):
            while True:
                event = self._events.get_nowait()
                if isinstance(event, EngineLost | StepFailed):
                    self._put_off.append(event)
                else:
                    self._handle(event)
        order = self._next_ready() if self._given < self.progress.groups else None
        if order is None:
            return None
        self._given += 1
        return self._ready.pop(order)

    def close(self) -> None:
        """End what still runs; no more groups come."""
        self._given = self.progress.groups
        self._ready.clear()
        self._running.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _next_ready(self) -> int | None:
        if self._in_order:
            return self._given if self._given in self._ready else None
        return next(iter(self._ready), None)

    def _next_event(self) -> Event:
        if self._put_off:
            return self._put_off.pop(0)
        try:
            return self._events.get(timeout=self._deadline + OWN_ERROR_SECONDS)
        except Empty:
            seconds = self._deadline + OWN_ERROR_SECONDS
            message = (
                f"rollout: generate stood still after {self.progress.finished} of {self.progress.groups} groups: no "
                f"answer within {seconds:g} s (cluster.deadlines.call_seconds, and {OWN_ERROR_SECONDS:g} s more)"
            )
            raise DeadlineExceeded(message, "rollout", None, "generate") from None

    def _handle(self, event: Event) -> None:
        match event:
            case RequestEnded():
                pass
            case GroupFinished(order, samples):
                self._ready[order] = samples
                self.progress.count(samples)
            case EngineLost():
                self._engine_lost()
            case StepFailed(error):
                raise error

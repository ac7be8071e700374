"""Where the time of a step goes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rlhf_ray.config.placement import GENERATE, SCORE, SYNC, TRAIN

Clock = Callable[[], float]

IDLE = "idle"
"""The rest of a step: the driver works, and no role does."""


class Timings:
    """Durations of a step's parts. Within a part another may begin: then the outer one stands still."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._open = [IDLE]
        self._since = clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time within for `name`."""
        self._switch()
        self._open.append(name)
        try:
            yield
        finally:
            self._switch()
            self._open.pop()

    def take(self) -> dict[str, float]:
        """Return the seconds of each part since the last call, the rest as `idle`, and the sum of all as `step`."""
        self._switch()
        taken = {name: self._seconds.get(name, 0.0) for name in (GENERATE, SCORE, TRAIN, SYNC, IDLE)} | self._seconds
        self._seconds = {}
        return taken | {"step": sum(taken.values())}

    def _switch(self) -> None:
        now = self._clock()
        current = self._open[-1]
        self._seconds[current] = self._seconds.get(current, 0.0) + now - self._since
        self._since = now

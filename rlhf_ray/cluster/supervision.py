"""When to restart what failed: a pure state machine over an injected clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum


class Health(Enum):
    """State of one rank."""

    HEALTHY = "healthy"
    DOWN = "down"
    """It failed and waits for its restart."""

    LOST = "lost"
    """It failed too often."""


@dataclass(frozen=True)
class RestartPolicy:
    """Limits on restarts. A rank that fails more than `restarts` times within `window_seconds` is lost.

    The window is of time in which it worked: one that takes twenty minutes to start and then dies, each time, fails at
    one moment, and not three times an hour for ever.
    """

    restarts: int = 0
    window_seconds: float = 3600
    first_delay: float = 0.5
    """Seconds before the first restart; each further one within the window waits twice as long."""

    longest_delay: float = 60

    def delay(self, failures: int) -> float:
        """Return the seconds before the restart that follows so many failures (at least 1) within the window."""
        return min(self.longest_delay, self.first_delay * 2 ** (failures - 1))


@dataclass
class _Rank:
    health: Health = Health.HEALTHY
    failures: list[float] = field(default_factory=list)
    """By the seconds that it had worked until each."""
    ready_at: float = 0.0
    worked: float = 0.0
    works_since: float | None = None


class Supervision:
    """Restart budget and back-off of the ranks of one group."""

    def __init__(self, ranks: int, policy: RestartPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self.policy = policy
        self._clock = clock
        self._ranks = [_Rank() for _ in range(ranks)]

    def health(self, rank: int) -> Health:
        """Return the state of a rank."""
        return self._ranks[rank].health

    def failures(self, rank: int) -> int:
        """Count the failures of a rank within the window."""
        state = self._ranks[rank]
        oldest = self._worked(state) - self.policy.window_seconds
        state.failures = [when for when in state.failures if when > oldest]
        return len(state.failures)

    def failed(self, rank: int) -> Health:
        """Record a failure. DOWN: restart after `wait`; LOST: the budget is spent. Repeats while down count once."""
        state = self._ranks[rank]
        if state.health is not Health.HEALTHY:
            return state.health
        now = self._clock()
        state.worked, state.works_since = self._worked(state), None
        state.failures.append(state.worked)
        count = self.failures(rank)
        if count > self.policy.restarts:
            state.health = Health.LOST
        else:
            state.health = Health.DOWN
            state.ready_at = now + self.policy.delay(count)
        return state.health

    def wait(self, rank: int) -> float:
        """Return the seconds until a rank that is down may be restarted; 0 if it may be at once."""
        state = self._ranks[rank]
        return max(0.0, state.ready_at - self._clock()) if state.health is Health.DOWN else 0.0

    def restarted(self, rank: int) -> None:
        """Record that a rank starts again, so that what follows is a new failure. Those before stay in the window."""
        self._ranks[rank].health = Health.HEALTHY

    def works(self, rank: int) -> None:
        """Record that a rank works, from its first answer on."""
        state = self._ranks[rank]
        if state.works_since is None:
            state.works_since = self._clock()

    def _worked(self, state: _Rank) -> float:
        return state.worked + (self._clock() - state.works_since if state.works_since is not None else 0.0)

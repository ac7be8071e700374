"""Requests to services: when one is worth another attempt, and how long to wait before it.

The one rule of all who ask services: sources of data, reward sources, judges.
"""

import math
import random
from collections.abc import Callable
from typing import Any, Literal, TypeVar

T = TypeVar("T")

MAY_PASS = frozenset({408, 425, 429})
"""Statuses below 500 that may pass: the request was late, too early, or one of too many."""
SERVER_ERROR = 500
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds, before scattering."""
SHORTEST_SHARE, LONGEST_SHARE = 0.75, 1.25
"""Between these a pause is scattered."""
LAST_ATTEMPT = 0.5
"""Seconds that a pause which is cut leaves for the attempt after it."""
LEAST_OF_ROOM = 0.9
"""A pause that is cut takes at least this share of the time that there is for it."""
MOST_DOUBLINGS = 32
"""Far past the longest pause; the power of two of thousands of attempts would be no number."""


class NoAnswer(Exception):
    """No attempt brought an answer: it was refused, with this status, all were in vain, or the time is over."""

    def __init__(self, kind: Literal["refused", "unreachable", "too late"], reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.status = kind, reason, status

    def told(self, deadline_seconds: float) -> str:
        """Say what happened, for a message."""
        if self.kind != "too late":
            return self.reason
        last = f" (last: {self.reason})" if self.reason else ""
        return f"deadline_seconds ({deadline_seconds:g} s) passed{last}"


def answered(
    send: Callable[[float], tuple[Any, T]],
    *,
    retries: int,
    timeout_seconds: float,
    left: Callable[[], float],
    sleep: Callable[[float], object],
) -> T:
    """Send a request until it is answered; return what came.

    Args:
        send: makes one attempt in at most so many seconds; gives httpx's response and what it holds.
        retries: attempts after the first.
        timeout_seconds: of one attempt.
        left: seconds until further attempts make no sense.
        sleep: waits so many seconds.

    Raises:
        NoAnswer: says why.
        httpx.InvalidURL, httpx.UnsupportedProtocol: no attempt can succeed.
    """
    import httpx

    reason = ""
    for attempt in range(retries + 1):
        seconds = left()
        if seconds <= 0:
            raise NoAnswer("too late", reason)
        asked: float | None = None
        try:
            response, answer = send(min(timeout_seconds, seconds))
        except httpx.UnsupportedProtocol:
            raise
        except httpx.TransportError as error:
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
        else:
            if response.is_success:
                return answer
            reason = f"HTTP {response.status_code}"
            if not may_pass(response.status_code):
                raise NoAnswer("refused", reason, response.status_code)
            asked = asked_seconds(response.headers.get("Retry-After"))
        if attempt < retries:
            pause = pause_seconds(attempt, asked, left())
            if pause is None:
                raise NoAnswer("too late", reason)
            sleep(pause)
    raise NoAnswer("unreachable", f"{reason}, {retries + 1} times")


def may_pass(status: int) -> bool:
    """Tell whether another attempt may get another answer than this status."""
    return status in MAY_PASS or status >= SERVER_ERROR


def asked_seconds(retry_after: str | None) -> float | None:
    """Read the seconds of the header Retry-After; None without it, and for a date, its other form."""
    value = (retry_after or "").strip()
    return float(value) if value.isascii() and value.isdigit() else None


def pause_seconds(attempt: int, asked: float | None = None, left: float = math.inf) -> float | None:
    """Choose the seconds before the next attempt: doubled each time, scattered so that clients spread out.

    A pause that would outlast the time left ends a little before that is over: the service may be back by then.

    Args:
        attempt: number of the one that failed, from 0.
        asked: what the service asks for, which may be longer; it is never cut.
        left: seconds until further attempts make no sense.

    Returns:
        None where no other attempt comes in time.
    """
    doublings = min(attempt, MOST_DOUBLINGS)
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**doublings) * random.uniform(SHORTEST_SHARE, LONGEST_SHARE)
    room = left - LAST_ATTEMPT
    if pause > room:
        pause = room * random.uniform(LEAST_OF_ROOM, 1.0)
        if pause < FIRST_PAUSE * SHORTEST_SHARE:
            return None
    pause = pause if asked is None else max(pause, asked)
    return pause if pause < left else None

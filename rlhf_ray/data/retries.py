"""When a request to a service is worth another attempt, and how long to wait before it.

The one rule of all who ask services: sources of data, reward sources, judges.
"""

import math
import random

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


def may_pass(status: int) -> bool:
    """Whether another attempt may get another answer than this status."""
    return status in MAY_PASS or status >= SERVER_ERROR


def asked_seconds(retry_after: str | None) -> float | None:
    """Seconds of the header Retry-After; None without it, and for a date, its other form."""
    value = (retry_after or "").strip()
    return float(value) if value.isascii() and value.isdigit() else None


def pause_seconds(attempt: int, asked: float | None = None, left: float = math.inf) -> float | None:
    """Seconds before the next attempt: doubled each time, and scattered so that clients do not return together.

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

"""One engine's place in the pool."""

import asyncio

import pytest

from rlhf_ray.rollout import seats
from tests.rollout.fake_engine import FakeEngine


def test_time_in_which_an_engine_has_nothing_to_write_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(seats.time, "monotonic", lambda: now[0])
    seat = seats.Seat(FakeEngine(), 0, queued=False, deadline_seconds=5)  # type: ignore[arg-type]

    async def work() -> None:
        now[0] += 2
        with seat.rollout(0, 1):
            now[0] += 3
            with seat.rollout(1, 1):
                now[0] += 3
        now[0] += 4
        assert seat.take_idle_seconds() == 6
        assert seat.take_idle_seconds() == 0

    asyncio.run(work())

"""A machine whose link is cut: Ray misses it after more than a minute, and until then nobody starts anything there."""

from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.cluster import connect

MISSED_AFTER = 65.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that have passed, while a machine answers nothing and Ray misses it after MISSED_AFTER."""
    now = [0.0]

    def wait(refs: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        now[0] += timeout
        return [], refs

    here = SimpleNamespace(get_node_id=lambda: "the driver's")
    monkeypatch.setattr(connect, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(connect, "ray", SimpleNamespace(wait=wait, get_runtime_context=lambda: here))
    monkeypatch.setattr(connect, "run_on", lambda *_: object())
    monkeypatch.setattr(connect, "_alive", lambda: {"silent"} if now[0] < MISSED_AFTER else set())
    return now


def test_what_ray_says_is_waited_for(clock: list[float]) -> None:
    assert not connect._lives("silent", 600)
    assert clock[0] == pytest.approx(MISSED_AFTER, abs=1)


def test_not_longer_than_for_any_machine(clock: list[float]) -> None:
    assert connect._lives("silent", 30), "a busy one, which what is started there will show"
    assert clock[0] == pytest.approx(30, abs=1)

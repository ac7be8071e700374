"""The one rule of further attempts: for what may pass, after pauses that grow, and never before the service asks."""

import pytest

from rlhf_ray.data.retries import LAST_ATTEMPT, LONGEST_PAUSE, asked_seconds, may_pass, pause_seconds


@pytest.mark.parametrize(
    ("status", "expected"),
    [(400, False), (401, False), (404, False), (408, True), (425, True), (429, True), (500, True), (503, True)],
)
def test_what_may_pass(status: int, expected: bool) -> None:
    assert may_pass(status) is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Tue, 1 Jan", None),
        ("-3", None),
        ("inf", None),
        ("٣", None),
    ],
)
def test_seconds_that_are_asked_for(header: str | None, expected: float | None) -> None:
    assert asked_seconds(header) == expected


def test_pauses_double_up_to_a_limit_and_are_no_shorter_than_asked() -> None:
    for attempt, least in ((0, 0.375), (1, 0.75), (2, 1.5), (50, 0.75 * LONGEST_PAUSE), (5000, 0.75 * LONGEST_PAUSE)):
        drawn = [pause for _ in range(50) if (pause := pause_seconds(attempt)) is not None]
        assert len(drawn) == 50
        assert least <= min(drawn) < max(drawn) <= least / 0.75 * 1.25
    assert pause_seconds(0, 9.0) == 9.0
    patient = pause_seconds(3, 0.0)
    assert patient is not None
    assert patient >= 3.0


@pytest.mark.parametrize("seconds", [10.0, 60.0, 300.0])
def test_attempts_go_on_until_the_time_is_over(seconds: float) -> None:
    for _ in range(100):
        now, attempt = 0.0, 0
        while (pause := pause_seconds(attempt, None, seconds - now)) is not None:
            now, attempt = now + pause, attempt + 1
            assert attempt < 20, "without a crowd of attempts at the end"
        assert seconds - 2 * LAST_ATTEMPT < now <= seconds - LAST_ATTEMPT


@pytest.mark.parametrize(
    ("asked", "left", "expected"), [(5.0, 10.0, 5.0), (9.9, 10.0, 9.9), (10.0, 10.0, None), (3600.0, 10.0, None)]
)
def test_what_the_service_asks_for_is_never_cut(asked: float, left: float, expected: float | None) -> None:
    assert pause_seconds(0, asked, left) == expected


@pytest.mark.parametrize("left", [-3.0, 0.0, LAST_ATTEMPT])
def test_no_time_is_no_pause(left: float) -> None:
    assert pause_seconds(0, None, left) is None

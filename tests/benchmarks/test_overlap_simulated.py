"""The recursion that the loop is measured against."""

import pytest

from benchmarks.overlap_simulated import Engine, predicted

STEPS, LEARNING = 6, 0.7


def test_in_turns_nothing_overlaps() -> None:
    engine, now = Engine(3, 0.1), 0.0
    for _ in range(STEPS):
        now = engine.ask(now)[-1] + LEARNING
    assert predicted(0, STEPS, 3, 0.1, LEARNING) == pytest.approx(now)


def test_writing_ahead_never_costs_time_and_nothing_beats_the_slower_side() -> None:
    times = [predicted(staleness, STEPS, 3, 0.1, LEARNING) for staleness in range(STEPS)]
    assert times == sorted(times, reverse=True)
    assert times[-1] >= max(STEPS * LEARNING, max(Engine(3, 0.1).ask(0.0)))

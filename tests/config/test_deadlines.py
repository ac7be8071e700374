"""Deadlines that follow the size of a model, unless they are given."""

import pytest

from rlhf_ray.config.placement import DeadlineConfig

SEVENTY_TWO_B = 145_400_000_000
"""Bytes of 72.7 billion weights."""


def test_a_large_model_has_longer_to_load_and_to_travel() -> None:
    deadlines = DeadlineConfig()
    assert (deadlines.loading(0), deadlines.transfer(0)) == (600, 300)
    assert deadlines.loading(SEVENTY_TWO_B) == pytest.approx(3508)
    assert deadlines.transfer(SEVENTY_TWO_B) == pytest.approx(881.6)
    given = DeadlineConfig(load_seconds=60, transfer_seconds=30)
    assert (given.loading(SEVENTY_TWO_B), given.transfer(SEVENTY_TWO_B)) == (60, 30)

"""Trackers that write into a temporary folder, and what they show."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.run import TrackingConfig
from rlhf_ray.tracking.terminal import Terminal
from rlhf_ray.tracking.tracker import Tracker

QUIET = {"wandb": "off", "tensorboard": False}


@pytest.fixture
def shown() -> io.StringIO:
    """What the trackers of a test printed."""
    return io.StringIO()


@pytest.fixture
def open_tracker(tmp_path: Path, shown: io.StringIO) -> Callable[..., Tracker]:
    """Opens a tracker in the test's run folder; keywords change the tracking config."""

    def opened(
        run_id: str | None = None, config: dict[str, Any] | None = None, notes: Sequence[str] = (), **changes: Any
    ) -> Tracker:
        tracking = TrackingConfig(**(QUIET | changes))
        return Tracker.open(
            tmp_path / "run", tracking, config or {}, run_id, total_steps=10, notes=notes, terminal=Terminal(10, shown)
        )

    return opened

"""Fixtures of the tests of `rlhf plan`."""

import json
from pathlib import Path

import pytest

from tests.jobs.plan.plan_models import SEVEN_B


@pytest.fixture
def seven_b(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(SEVEN_B))
    return tmp_path

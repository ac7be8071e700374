"""A model for the commands of pages."""

from pathlib import Path

import pytest

from tests.conftest import TEXTS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What stands for every model that a page makes or brings; engines on CPU take heads of its width."""
    from rlhf_ray.models.tiny import build_tiny

    return build_tiny(tmp_path_factory.mktemp("models") / "model", TEXTS, hidden=64, heads=2, tie=True)

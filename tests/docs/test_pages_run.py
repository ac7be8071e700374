"""Every command of the pages that this machine can run does run, in their order, on small numbers; takes minutes."""

from pathlib import Path

import pytest

from tests.docs.pages import pages
from tests.docs.running import Runner, smaller

SECONDS = 3000
"""For all commands of a page on a busy machine."""


@pytest.fixture(scope="module")
def kept() -> dict[str, Path]:
    """What commands left that several pages begin with, such as `make demo`."""
    return {}


@pytest.mark.slow
@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("page", pages(), ids=str)
def test_run_in_order(
    page: Path, model: Path, kept: dict[str, Path], tmp_path: Path, subtests: pytest.Subtests
) -> None:
    Runner(tmp_path, model, kept).follow(page, subtests, "in part not run")


def test_numbers_of_options_are_lowered() -> None:
    assert smaller(["a.yaml", "--steps", "10", "--seed", "7", "--epochs", "1"]) == [
        *("a.yaml", "--steps", "2", "--seed", "7", "--epochs", "1")
    ]

"""Every command of the pages that this machine can run does run, in their order, on small numbers; takes minutes."""

from pathlib import Path

import pytest

from tests.docs.pages import blocks_of, pages
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
    runner = Runner(tmp_path, model, kept)
    runner.begin(page)
    for block in blocks_of(page):
        try:
            runner.do(block)
        except Exception as error:
            raise AssertionError(f"{block.place}: {error}") from error
    for block, reason in runner.left_out:
        if block.page == page:
            with subtests.test(block.place):
                pytest.skip(f"{block.place}: in part not run: {reason}")


def test_numbers_of_options_are_lowered() -> None:
    assert smaller(["a.yaml", "--steps", "10", "--seed", "7", "--epochs", "1"]) == [
        *("a.yaml", "--steps", "2", "--seed", "7", "--epochs", "1")
    ]

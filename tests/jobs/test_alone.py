"""One process at a time in a folder, and no folder of a start that made nothing."""

from pathlib import Path

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.jobs.alone import alone_in
from rlhf_ray.jobs.run_folder import CONFIG_FILE


class Failed(Exception):
    """Stands for any."""


def fail_in(folder: Path, written: str) -> None:
    def start() -> None:
        with alone_in(folder):
            (folder / written).write_text("x")
            raise Failed

    with pytest.raises(Failed):
        start()


def test_a_second_one_is_refused(tmp_path: Path) -> None:
    with alone_in(tmp_path), pytest.raises(BadInput, match="another process works in"), alone_in(tmp_path):
        pass


def test_a_start_that_made_nothing_leaves_no_folder(tmp_path: Path) -> None:
    fail_in(tmp_path / "new" / "run", CONFIG_FILE)
    assert list(tmp_path.iterdir()) == []


def test_what_was_made_stays_and_so_does_a_folder_that_was_there(tmp_path: Path) -> None:
    fail_in(tmp_path / "new", "answers.jsonl")
    assert (tmp_path / "new" / "answers.jsonl").exists()
    (tmp_path / "old").mkdir()
    fail_in(tmp_path / "old", CONFIG_FILE)
    assert (tmp_path / "old" / CONFIG_FILE).exists()


def test_a_refused_start_leaves_the_folder_of_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with alone_in(folder):
        with pytest.raises(BadInput), alone_in(folder):
            pass
        assert folder.exists()

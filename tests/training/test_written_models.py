"""Who may read a model that was written: whoever the umask says."""

import os
import tempfile
from pathlib import Path

import pytest

from rlhf_ray.training.export import write_directory


def save(folder: Path) -> None:
    """As safetensors does: by a file that is its owner's alone."""
    _, name = tempfile.mkstemp(dir=folder)
    Path(name).rename(folder / "model.safetensors")
    (folder / "config.json").write_text("{}")


@pytest.mark.parametrize(("umask", "of_files", "of_folders"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_files_have_the_modes_of_the_umask(umask: int, of_files: int, of_folders: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_directory(str(tmp_path / "final"), save)
        write_directory(str(tmp_path / "final"), save)
    finally:
        os.umask(before)
    assert (tmp_path / "final").stat().st_mode & 0o777 == of_folders
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "final").iterdir()} == {
        "model.safetensors": of_files,
        "config.json": of_files,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["final"], "nothing is left of the old one"

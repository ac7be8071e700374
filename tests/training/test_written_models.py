"""A model is written whole or not at all, for whoever the umask says, and nothing is left beside it."""

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


@pytest.mark.parametrize("last", ["save", "aside", "in place"])
def test_what_a_killed_process_left_is_cleared_away_by_the_next(last: str, tmp_path: Path) -> None:
    target = tmp_path / "final"
    left = {"save": [".final.partial"], "aside": [".final.partial", ".final.old"], "in place": ["final", ".final.old"]}
    for name in [*left[last], *(["final"] if last == "save" else [])]:
        (tmp_path / name).mkdir()
        (tmp_path / name / name.strip(".")).write_text("")

    def failing(folder: Path) -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        write_directory(str(target), failing)
    kept = "final.old" if last == "aside" else "final"
    assert [path.name for path in target.iterdir()] == [kept], "the newest whole model"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_model_is_on_the_device_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the rename must not leave a folder of empty files."""
    synced: list[str] = []
    sync, rename = os.fsync, Path.rename

    def noted(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        synced.append(f"{path.name} -> {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "rename", renamed)

    def written(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"weights")

    write_directory(str(tmp_path / "final"), written)
    assert synced == ["model.safetensors", ".final.partial", ".final.partial -> final", tmp_path.name]

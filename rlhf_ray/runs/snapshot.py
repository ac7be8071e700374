"""A start that made nothing leaves a run folder as it found it: gone where it was new."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

from rlhf_ray.tracking.pictures import CURVES_FILE, REPORT_FILE
from rlhf_ray.tracking.records import METRICS_FILE, SAMPLES_FILE, read_records
from rlhf_ray.tracking.run_record import RUN_FILE

ANSWERS_FILE = "feedback.jsonl"
"""What a person scored at the terminal."""

ROW_FILES = (METRICS_FILE, SAMPLES_FILE, ANSWERS_FILE)
"""Empty where nothing was made."""

REWRITTEN_FILES = (RUN_FILE, CURVES_FILE, REPORT_FILE)
"""Each start writes these anew, whatever comes of it."""

WRITERS_FOLDERS = ("tensorboard", "wandb")


def holds_steps(folder: Path) -> bool:
    """Tell whether a run has made a step there, so that its settings belong to results."""
    # An evaluation before the first step is no step, and the next start repeats it.
    return (
        any((folder / "checkpoints").glob("step_*"))
        or (folder / "final").exists()
        or _size(folder / ANSWERS_FILE) > 0
        or any(row["step"] > 0 for row in read_records(folder / METRICS_FILE))
    )


class FolderSnapshot:
    """Content of a run folder before a start."""

    def __init__(self, folder: Path, written: tuple[str, ...]) -> None:
        """Look at a folder, which need not exist; `written` names further files that each start writes."""
        self._folder = folder
        self._missing = [path for path in (folder, *folder.parents) if not path.exists()]
        self._content = {name: _content(folder / name) for name in (*written, *REWRITTEN_FILES)}
        self._absent = [name for name in (*ROW_FILES, *WRITERS_FOLDERS) if not (folder / name).exists()]
        self._samples = _size(folder / SAMPLES_FILE)
        self._made = _made(folder)

    @property
    def was_new(self) -> bool:
        """Whether there was no folder."""
        return bool(self._missing)

    def still(self) -> bool:
        """Tell whether nothing was made since: no row of a step, no checkpoint, no model."""
        same = _made(self._folder) == self._made
        return same and not _holds_samples_of_steps(self._folder / SAMPLES_FILE, self._samples)

    def put_back(self) -> None:
        """Bring back what stood there, and remove what did not; what else came into the folder stays with it."""
        # On a full disk or a share that is gone there is nothing left to do, and an error is on its way already.
        with suppress(OSError):
            for name, content in self._content.items():
                if content is None:
                    (self._folder / name).unlink(missing_ok=True)
                elif _content(self._folder / name) != content:
                    (self._folder / name).write_bytes(content)
            for name in self._absent:
                path = self._folder / name
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            for path in self._missing:
                path.rmdir()


def _made(folder: Path) -> tuple[object, ...]:
    final = folder / "final"
    return (
        *(_size(folder / name) for name in (METRICS_FILE, ANSWERS_FILE)),
        final.stat().st_mtime_ns if final.exists() else None,
        *sorted(path.name for path in (folder / "checkpoints").glob("step_*")),
    )


def _holds_samples_of_steps(path: Path, before: int) -> bool:
    """Tell whether a file of samples grew since it had so many bytes; those before the first step do not count."""
    size = _size(path)
    if size <= before:
        return size < before
    with path.open("rb") as file:
        file.seek(before)
        return any(json.loads(line)["step"] > 0 for line in file if line.strip())


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None

"""JSON lines that survive a kill: one row a line, flushed; a torn last line is dropped by reader and writer alike."""

import json
import math
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.tracking.names import EVALUATION_PREFIX

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"

EVALUATION, SHOWN = "evaluation", "shown"
"""Kinds of samples that answer the same prompts each time: held-out ones, and training prompts that are only shown."""


class RecordFile:
    """Rows with a `step`, appended to one file. Raises RlhfError where the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _drop_torn_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from error

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. It is not buffered, so that a kill loses or tears at most this line."""
        line = json.dumps(json_value(row), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        end = self._file.tell()
        try:
            _write_all(self._file, line)
        except OSError as error:
            # On a full disk, half a line may have found room.
            with suppress(OSError):
                self._file.truncate(end)
            raise self._failure(error) from error

    def truncate_after(self, step: int) -> int:
        """Drop rows of later steps, which a resumed run writes again. The new file replaces the old one whole.

        Returns:
            The last step that was dropped; `step` where there was none.
        """
        last = step
        part = self.path.with_suffix(".jsonl.part")
        try:
            self._file.close()
            with part.open("wb") as kept:
                for row in read_records(self.path):
                    last = max(last, row["step"])
                    if row["step"] <= step:
                        kept.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                kept.flush()
                os.fsync(kept.fileno())
            part.replace(self.path)
            self._file = self.path.open("ab", buffering=0)
        except OSError as error:
            raise self._failure(error) from error
        return last

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _failure(self, error: OSError) -> RlhfError:
        return RlhfError(
            f"cannot write {self.path}: {error.strerror or error}; "
            "make room or choose another output, then run the same command to resume"
        )


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a record file that have a step; nothing where there is no file."""
    return (row for row in read_whole_rows(path) if isinstance(row.get("step"), int))


def holds_evaluation(folder: Path, step: int) -> bool:
    """Tell whether a run folder has the metrics of an evaluation after `step`."""
    rows = (row for row in read_records(folder / METRICS_FILE) if row["step"] == step)
    return any(name.startswith(EVALUATION_PREFIX) for row in rows for name in row)


def read_whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a file of JSON lines, if there is one. A torn or foreign line is left out."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, whole. Raises OSError."""
    # Named by thread as well: a drawing of the run and `rlhf plot` may meet in one folder.
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _write_all(file: FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    with path.open("rb+") as file:
        content_end = file.seek(0, os.SEEK_END)
        whole = content_end
        block = 1 << 16
        while whole > 0:
            start = max(0, whole - block)
            file.seek(start)
            newline = file.read(whole - start).rfind(b"\n")
            whole = start + newline + 1 if newline >= 0 else start
            if newline >= 0:
                break
        if whole < content_end:
            file.truncate(whole)


def json_value(value: Any) -> Any:
    """Convert to what JSON has: numpy scalars and arrays become numbers and lists, NaN and infinity null."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(item) for item in value]
    to_plain = getattr(value, "tolist", None)
    return json_value(to_plain()) if to_plain is not None else str(value)

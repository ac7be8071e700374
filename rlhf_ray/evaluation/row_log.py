"""Rows that are written as they come and found again by the next start, as long as they are still about the same.

Each file has a key, a hash of all that its rows depend on. A file whose key has changed is begun anew, so that answers
of a model that was trained again, or scores of another reward model, never stay.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.file_formats import Row
from rlhf_ray.tracking.records import RecordFile, read_whole_rows, replace_file

KEYS_FILE = "keys.json"


def key_of(*parts: Any) -> str:
    """Hash values that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


class RowLogs:
    """The row files below one folder."""

    def __init__(self, folder: Path) -> None:
        """Read the keys of what is there.

        Raises:
            BadInput: the list of keys is not one of ours.
        """
        self.folder = folder
        self._file = folder / KEYS_FILE
        self._keys: dict[str, str] = {}
        if self._file.exists():
            try:
                found = json.loads(self._file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise BadInput(f"{self._file} is not readable ({error}); remove it to begin anew") from None
            if not isinstance(found, dict):
                raise BadInput(f"{self._file} holds no list of files; remove it to begin anew")
            self._keys = found

    def path(self, name: str) -> Path:
        """Return the path of a file, such as `answers/sft`."""
        return self.folder / f"{name}.jsonl"

    def prepare(self, name: str, key: str) -> bool:
        """Keep the rows of a file that has this key, else begin it anew; returns whether rows of another key went."""
        path = self.path(name)
        if self._keys.get(name) == key:
            return False
        stale = path.exists()
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._keys[name] = key
        replace_file(self._file, (json.dumps(self._keys, indent=2) + "\n").encode())
        return stale

    def open(self, name: str) -> RecordFile:
        """Open a prepared file to append rows."""
        return RecordFile(self.path(name))

    def read(self, name: str) -> Iterator[Row]:
        """Read the rows of a file; a line that a kill tore is left out."""
        return read_whole_rows(self.path(name))

"""Texts of rows that were kept, on disk."""

import os
import tempfile
from typing import IO

import numpy as np


class TextSpool:
    """Texts and the places of their rows on disk, by their numbers, so that memory holds 8 bytes of each."""

    def __init__(self, folder: str | None = None) -> None:
        # Open as long as the object; `close` ends it, and the system if the process dies.
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix="texts")  # noqa: SIM115
        self._ends = np.zeros(1 << 12, np.int64)
        self.count = 0

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._ends.nbytes

    def add(self, text: str, place: str) -> None:
        """Append a text in its normal form, which has no line break."""
        content = f"{text}\n{place}".encode()
        self._file.write(content)
        if self.count + 1 == len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros_like(self._ends)])
        self._ends[self.count + 1] = self._ends[self.count] + len(content)
        self.count += 1

    def text(self, number: int) -> str:
        """Return a text by its number."""
        return self._read(number)[0]

    def place(self, number: int) -> str:
        """Return where the row of a text stood: its file and line."""
        return self._read(number)[1]

    def _read(self, number: int) -> tuple[str, str]:
        begin, end = int(self._ends[number]), int(self._ends[number + 1])
        self._file.flush()
        text, _, place = os.pread(self._file.fileno(), end - begin, begin).decode().partition("\n")
        return text, place

    def close(self) -> None:
        """Delete the file."""
        self._file.close()

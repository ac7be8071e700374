"""The file that a job over a data set writes: all of it, or none."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TextIO

from rlhf_ray.checkpoint.storage import local_path, writing
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.row_files import RowWriter, open_rows
from rlhf_ray.tracking.terminal import make_bar, plain_console


@contextmanager
def row_output(path: str, known: Sequence[Row], added: Mapping[str, type]) -> Iterator[RowWriter]:
    """Write rows to a path or URL; the file appears there when the block ends well. See `open_rows`.

    Raises:
        BadInput: nothing can be written there, or the format cannot hold a column.
        RlhfError: the storage is full.
    """
    check_output(path)
    path = os.path.expanduser(path)
    with writing(path) as stream, open_rows(stream, path, known, added) as rows:
        yield rows


def check_output(path: str) -> None:
    """Check that a file can be put at a local path; object stores answer when they are written to.

    Raises:
        BadInput: a folder has that name, or the folder above cannot be written.
    """
    local = local_path(os.path.expanduser(path))
    if local is None:
        return
    if Path(local).is_dir():
        raise BadInput(f"output: {path} is a folder; name a file in it")
    above = next(folder for folder in Path(local).parents if folder.exists())
    if not above.is_dir():
        raise BadInput(f"output: cannot write {path}: {above} is a file, not a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise BadInput(f"output: cannot write {path}: no permission to write in {above}")


LINE_SECONDS = 60.0


class RowProgress:
    """Counts rows; the block takes the bar away at its end."""

    def __init__(
        self, what: str, total: int | None, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Show work, named in one word such as `generating`, on `total` rows; None if nobody knows how many."""
        self._what = what
        self._total = total
        self._done = 0
        self._clock = clock
        self._began = self._spoke = clock()
        self._console = plain_console(stream or sys.stdout)
        self._bar = make_bar(self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task(what, total=total, rate="")

    def advance(self, rows: int, tokens: int | None = None) -> None:
        """Count so many more rows as done; `tokens` were written since the beginning."""
        self._done += rows
        now = self._clock()
        seconds = now - self._began
        rate = f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds > 0 else ""
        self._bar.update(self._task, completed=self._done, rate=rate)
        if self._bar.disable and now - self._spoke >= LINE_SECONDS:
            self._spoke = now
            of = "" if self._total is None else f" of {self._total}"
            self.message(f"{self._what}: {self._done}{of} rows, {seconds:.0f} s {rate}".rstrip())

    def message(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        self._console.print(text, soft_wrap=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

"""One process at a time in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf_ray.config.errors import BadInput


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and keep others out of it while the block runs; the system lets go however this process ends.

    Raises:
        BadInput: another process works there, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"output: cannot write to {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"output: another process works in {folder}; wait for it, or choose another") from None
        yield

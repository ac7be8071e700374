"""One process at a time in a folder."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhf_ray.config.errors import BadInput
from rlhf_ray.jobs.run_folder import CONFIG_FILE, LOCK_FILE


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder and keep others out of it while the block runs; the system lets go however this process ends.

    A block that fails before it wrote more than its config leaves no folder behind where there was none.

    Raises:
        BadInput: another process works there, or it cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK_FILE).open("a", encoding="utf-8")
    except OSError as error:
        raise BadInput(f"output: cannot write to {folder}: {error.strerror or error}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BadInput(f"output: another process works in {folder}; wait for it, or choose another") from None
        try:
            yield
        except BaseException:
            if missing:
                _remove_if_empty(missing)
            raise


def _remove_if_empty(folders: list[Path]) -> None:
    """Remove a new folder, which comes first, and the new ones around it, if it holds no more than its config."""
    # On a share that is gone there is nothing left to do, and an error is on its way already.
    with suppress(OSError):
        if not {path.name for path in folders[0].iterdir()} <= {CONFIG_FILE, LOCK_FILE}:
            return
        for name in (CONFIG_FILE, LOCK_FILE):
            (folders[0] / name).unlink(missing_ok=True)
        for folder in folders:
            folder.rmdir()

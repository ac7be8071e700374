"""Secrets in the environment of all tests and of every process that they start, to be found nowhere else."""

import base64
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PLANTED = {
    "PLANTED_API_KEY": "pl4nted-Key-51c0a9e7",
    "PLANTED_CREDENTIALS": "pl4nted-Cred-77f3b2d8",
    # Secret only because configs name it.
    "JUDGE_LOGIN": "Bearer pl4nted-Login-e2b06c14",
}
NEEDLES = [value.removeprefix("Bearer ").encode() for value in PLANTED.values()]
NEEDLES += [base64.b64encode(needle).rstrip(b"=") for needle in NEEDLES]
LOOK_SECONDS = 0.2


def plant() -> None:
    """Set the variables, before anything starts that inherits them."""
    os.environ.update(PLANTED)


def leaks_in(*folders: Path, needles: Sequence[bytes] = NEEDLES) -> list[str]:
    """Each file below some folders that holds a planted secret, with the line."""
    found = []
    for file in (file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()):
        content = file.read_bytes()
        lines = content.splitlines() if any(needle in content for needle in needles) else []
        found += [f"{file}: {line[:400]!r}" for line in lines if any(needle in line for needle in needles)]
    return found


def leaks_in_text(text: str) -> list[str]:
    """Lines of an output that hold a planted secret."""
    return [line for line in text.splitlines() if any(needle in line.encode() for needle in NEEDLES)]


def ray_logs() -> Path:
    """Where the Ray of this session and all its workers write."""
    import ray

    return Path(ray._private.worker._global_node.get_session_dir_path())  # type: ignore[attr-defined]


@contextmanager
def commands_watched(needles: Sequence[bytes] = NEEDLES) -> Iterator[list[str]]:
    """Within the block, look at the command lines of all processes; yields those that hold a planted secret."""
    found: list[str] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_SECONDS):
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = file.read_bytes()
                except OSError:  # it has ended
                    continue
                if any(needle in line for needle in needles):
                    found.append(line.replace(b"\0", b" ").decode("utf-8", "replace"))

    watching = threading.Thread(target=look, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        over.set()
        watching.join()

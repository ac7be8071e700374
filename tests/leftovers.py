"""What processes that ended have left on the machine: files that nobody has any more."""

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from rlhf_ray.rollout.engine_files import SHARED_MEMORY, shared_memory_of

KINDS = {
    SHARED_MEMORY: re.compile(r"sem\.mp-|psm_|vllm_|deepspeed_"),
    # Sockets by which the processes of an engine talk, and the folder in which ours are.
    Path(tempfile.gettempdir()): re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$|rlhf_engine_"),
}
SECONDS = 20.0
"""In which processes that were killed disappear."""


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail where the block leaves something behind; what another living process has is its own affair."""
    before = _present()
    yield
    deadline = time.monotonic() + SECONDS
    while (left := _present() - before - _held()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def _present() -> set[str]:
    return {str(path) for folder, kind in KINDS.items() for path in folder.iterdir() if kind.match(path.name)}


def _held() -> set[str]:
    """Files that a living process has mapped, and sockets at which one listens, with their folders."""
    sockets = [Path(line.split()[-1]) for line in Path("/proc/net/unix").read_text().splitlines()]
    held = {str(path) for socket in sockets for path in (socket, socket.parent)}
    return held | {str(path) for path in shared_memory_of(psutil.process_iter())}

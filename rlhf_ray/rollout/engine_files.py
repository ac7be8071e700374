"""Files of an engine's processes that nobody else would remove: sockets, shared memory, and where its workers met.

vLLM hands sockets on as open files, which no library takes for its own then, and a process of `multiprocessing` ends
without the destructors that unlink shared memory; what is killed unlinks nothing at all.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

END_SECONDS = 2.0
"""In which an engine's processes end when they are told to. Then they are killed: there is nothing they would lose."""

SHARED_MEMORY = Path("/dev/shm")


class EngineFiles:
    """A folder for the sockets of an engine, and the shared memory that its processes have."""

    def __init__(self) -> None:
        self._others = _children()
        self._processes: set[psutil.Process] = set()
        self._left: set[Path] = set()
        self._folder = Path(tempfile.mkdtemp(prefix="rlhf_engine_"))
        self.environment = {"VLLM_RPC_BASE_PATH": str(self._folder)}
        """In which the engine's processes must start."""

    def note(self, *others: str | None) -> None:
        """Note the processes that started since this was made, what they have now, and further files of theirs."""
        self._processes |= _children() - self._others
        self._left |= shared_memory_of(self._processes) | {Path(path) for path in others if path is not None}

    def remove(self) -> None:
        """Remove what is left, once the processes have ended."""
        for path in self._left:
            path.unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)


def shared_memory_of(processes: Iterable[psutil.Process]) -> set[Path]:
    """Return the files of shared memory that processes have mapped; none of a process that has ended."""
    # By inode: a semaphore is mapped under a name that it has only until it is whole.
    mapped = {inode for process in processes for inode in _mapped_inodes(process)}
    return {Path(entry.path) for entry in os.scandir(SHARED_MEMORY) if entry.inode() in mapped} if mapped else set()


def _mapped_inodes(process: psutil.Process) -> Iterator[int]:
    try:
        maps = Path(f"/proc/{process.pid}/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in maps.splitlines():
        # Addresses, permissions, offset, device, inode, path.
        fields = line.split(maxsplit=5)
        if fields[-1].startswith(f"{SHARED_MEMORY}/"):
            yield int(fields[4])


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))

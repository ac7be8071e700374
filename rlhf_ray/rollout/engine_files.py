"""Files of an engine's processes: an adapter that they read; sockets, shared memory, and where its workers met.

Nobody else would remove the latter. vLLM hands sockets on as open files, which no library takes for its own then, and a
process of `multiprocessing` ends without the destructors that unlink shared memory; what is killed unlinks nothing at
all.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

END_SECONDS = 2.0
"""In which an engine's processes end when they are told to. Then they are killed: there is nothing they would lose."""

SHARED_MEMORY = Path("/dev/shm")

ADAPTER_ID = 1
"""Number of the only adapter of an engine."""


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


async def replace_adapter(llm: "AsyncLLM", files: Mapping[str, bytes], version: int) -> "LoRARequest":
    """Load an adapter over the one before; returns what each request must carry to be answered with it.

    vLLM reads adapters from a directory only, on the machine of its workers; this one is gone when they have read it.

    Args:
        llm: the engine, which generates nothing meanwhile.
        files: of the adapter as PEFT writes them, by name.
        version: of the weights; it names the adapter, so that no cached prefix of an older one counts as its own.
    """
    from vllm.lora.request import LoRARequest

    memory = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="rlhf_ray_adapter_", dir=memory) as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        name = f"version_{version}"
        await llm.add_lora(LoRARequest(name, ADAPTER_ID, folder, load_inplace=True))
        # Without `load_inplace`, for which each request would read the files again.
        return LoRARequest(name, ADAPTER_ID, folder)

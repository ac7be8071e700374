"""What an engine's processes leave behind, without an engine."""

import signal
import sys
import threading
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from rlhf_ray.rollout.engine_files import EngineFiles
from rlhf_ray.transfer import plugin


def work(ready: Connection) -> None:
    """Have what the processes of vLLM have, until killed."""
    memory, lock = SharedMemory(create=True, size=4096), get_context("spawn").Lock()
    for name in (memory.name, lock._semlock.name):  # type: ignore[attr-defined]
        ready.send(name)
    signal.pause()


def test_what_killed_processes_had_is_removed() -> None:
    files = EngineFiles()
    folder = Path(files.environment["VLLM_RPC_BASE_PATH"])
    (folder / "socket").touch()
    met = folder.with_suffix(".met")
    met.touch()
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=work, args=(theirs,))
    process.start()
    memory, semaphore = ours.recv(), ours.recv()
    shared = [Path("/dev/shm", memory), Path(f"/dev/shm/sem.{semaphore.lstrip('/')}")]
    files.note(str(met), None)
    process.kill()
    process.join()
    assert all(path.exists() for path in (*shared, folder, met))
    files.remove()
    assert not any(path.exists() for path in (*shared, folder, met))
    # The process's tracker is this one's, which would miss them at its end.
    resource_tracker.unregister(f"/{memory}", "shared_memory")
    resource_tracker.unregister(semaphore, "semaphore")


def test_what_others_have_stays() -> None:
    memory = SharedMemory(create=True, size=4096)
    try:
        files = EngineFiles()
        files.note()
        files.remove()
        assert Path("/dev/shm", memory.name).exists()
    finally:
        memory.close()
        memory.unlink()


def test_the_bars_of_vllm_need_no_lock_of_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "rlhf_ray.transfer.vllm_adapter", SimpleNamespace(register_backends=lambda backends: None)
    )
    monkeypatch.setattr(tqdm, "_lock", None, raising=False)
    plugin.register()
    assert isinstance(tqdm.get_lock(), type(threading.RLock()))

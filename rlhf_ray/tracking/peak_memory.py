"""How much memory a run holds at most: its driver and all processes that it started on the driver's machine."""

import os
import threading
from collections.abc import Callable
from pathlib import Path

INTERVAL_SECONDS = 1.0
PROCESSES = Path("/proc")
KIBIBYTE = 1024


class PeakMemory:
    """Looks once a second, on a thread of its own, until closed."""

    def __init__(self, interval: float = INTERVAL_SECONDS, look: Callable[[], int | None] | None = None) -> None:
        """Look each `interval` seconds; `look` is what is measured, `held_memory` by default."""
        self._interval = interval
        self._look = look or held_memory
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._peak = self._look()
        self._thread = threading.Thread(target=self._watch, name="peak memory", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._closed.wait(self._interval):
            self._take()

    def _take(self) -> None:
        held = self._look()
        with self._lock:
            if held is not None:
                self._peak = max(self._peak or 0, held)

    def close(self) -> int | None:
        """End, and return the most bytes that were seen; None where the system does not tell."""
        self._closed.set()
        self._thread.join(self._interval)
        self._take()
        return self._peak


def held_memory(root: int | None = None, processes: Path = PROCESSES) -> int | None:
    """Measure the bytes that a process and all below it hold for themselves, and the largest piece they share.

    Pages of libraries, which all of them map, are not counted; shared memory (Ray's object store) is counted once.

    Args:
        root: id of the process; this one by default.
        processes: where Linux lists them.

    Returns:
        None on other systems.
    """
    statuses = _statuses(processes)
    if not statuses:
        return None
    children: dict[int, list[int]] = {}
    for process, status in statuses.items():
        children.setdefault(status.get("PPid", 0), []).append(process)
    private = shared = 0
    waiting = [root if root is not None else os.getpid()]
    while waiting:
        process = waiting.pop()
        waiting += children.get(process, [])
        status = statuses.get(process, {})
        private += status.get("RssAnon", 0)
        shared = max(shared, status.get("RssShmem", 0))
    return (private + shared) * KIBIBYTE


def _statuses(processes: Path) -> dict[int, dict[str, int]]:
    """Read the numbers of `/proc/ID/status`, sizes in KiB. A process that ends meanwhile is left out."""
    found: dict[int, dict[str, int]] = {}
    try:
        names = [name for name in os.listdir(processes) if name.isdigit()]
    except OSError:
        return {}
    for name in names:
        try:
            lines = (processes / name / "status").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        numbers = {}
        for line in lines:
            key, _, value = line.partition(":")
            if key in ("PPid", "RssAnon", "RssShmem"):
                numbers[key] = int(value.split()[0])
        found[int(name)] = numbers
    return found

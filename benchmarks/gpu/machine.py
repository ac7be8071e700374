"""The GPU at hand: its peaks, and how much of its memory is in use."""

import subprocess
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

LOOK_SECONDS = 0.5


class Peaks(NamedTuple):
    """Speeds that a GPU does not exceed, by its data sheet."""

    tflops: float
    """Of bfloat16 products without sparsity."""
    bandwidth: float
    """Of its memory, in GB/s."""


PEAKS = {
    "H200": Peaks(989, 4800),
    "H100 PCIe": Peaks(756, 2000),
    "H100": Peaks(989, 3350),
    "A100-SXM4-40GB": Peaks(312, 1555),
    "A100": Peaks(312, 2039),
    "L40S": Peaks(362, 864),
    "RTX 4090": Peaks(165, 1008),
    "A10G": Peaks(70, 600),
}
"""By what a device's name holds; the first that fits."""


def peaks_of(name: str) -> Peaks:
    """Return the peaks of a device by its name.

    Raises:
        LookupError: it is not in the table.
    """
    for part, peaks in PEAKS.items():
        if part in name:
            return peaks
    raise LookupError(f"the peaks of {name} are not known; add them to PEAKS in {__file__}")


def used_gib() -> list[float]:
    """Return the memory in use on each GPU as nvidia-smi says it; none where there is no GPU."""
    return [float(line) / 1024 for line in _ask("memory.used")]


def gpu_names() -> list[str]:
    """Return the name of each GPU; none where there is no GPU."""
    return _ask("name")


def _ask(what: str) -> list[str]:
    command: Sequence[str] = ("nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits")
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError):
        return []


class PeakMemory:
    """Most memory in use on any GPU while a block runs, in GiB."""

    def __init__(self) -> None:
        self.gib = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.is_set():
            self.gib = max(self.gib, *used_gib(), 0.0)
            self._ended.wait(LOOK_SECONDS)


def settled_gib(seconds: float = 2.0) -> float:
    """Return the memory in use on the first GPU once what was just freed is gone from nvidia-smi's count."""
    time.sleep(seconds)
    return used_gib()[0]

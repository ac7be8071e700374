"""Peak memory of processes."""

from pathlib import Path

import psutil


def peak_mib(pid: int) -> float:
    """Return the most resident memory that a process has had (VmHWM), in MiB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    [kib] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(kib) / 1024


def actors_mib(name: str) -> list[float]:
    """Return the same of each Ray actor of a class that this process started, its children included."""
    ours = _living(psutil.Process())
    actors = [one for one in ours if "".join(one.cmdline()[:1]).startswith(f"ray::{name}")]
    return [sum(peak_mib(one.pid) for one in (actor, *_living(actor))) for actor in actors]


def _living(process: psutil.Process) -> list[psutil.Process]:
    """List children and theirs, but those that ended and were not waited for, which have no memory."""
    return [one for one in process.children(recursive=True) if one.status() != psutil.STATUS_ZOMBIE]

"""A part as it ran: passed, failed or skipped, seconds, memory, figures; kept as JSON, so that a run goes on."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.gpu.machine import PeakMemory
from benchmarks.gpu.parts import Part

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"

RUNNER = """
import importlib, json, sys
from pathlib import Path
module, function = sys.argv[1].split(":")
found = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(Path(sys.argv[2]))
Path(sys.argv[3]).write_text(json.dumps({name: float(value) for name, value in found.items()}))
"""


@dataclass
class Outcome:
    """Result of a part."""

    name: str
    status: str
    seconds: float = 0.0
    gib: float = 0.0
    """Most memory in use on any GPU."""
    figures: dict[str, float] = field(default_factory=dict)
    why: str = ""
    """It failed, or was skipped."""

    @classmethod
    def read(cls, folder: Path, part: Part) -> "Outcome | None":
        """Read what an earlier run found; None where it did not come to that."""
        try:
            return cls(**json.loads(_file(folder, part).read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def line(self) -> str:
        """Return it for people."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.figures.items())
        told = "; ".join(text for text in (figures, self.why) if text)
        return f"{self.name:10} {self.status:8} {self.seconds:6.1f} s {self.gib:6.1f} GiB  {told}"


def lacking(part: Part, gpus: int | None = None) -> str:
    """Return what a part needs and this machine does not have; nothing where all is there. `gpus` None: any number."""
    missing = [name for name in part.needs if importlib.util.find_spec(name) is None]
    if missing:
        return f"no {', '.join(missing)}"
    if gpus is None or gpus >= part.gpus:
        return ""
    return "needs a GPU" if part.gpus == 1 else f"needs {part.gpus} GPUs"


def run(part: Part, folder: Path, gpus: int) -> Outcome:
    """Run a part to its end or its deadline; writes its outcome."""
    folder.mkdir(parents=True, exist_ok=True)
    reason = lacking(part, gpus)
    outcome = Outcome(part.name, SKIPPED, why=reason) if reason else _ran(part, folder)
    _file(folder, part).write_text(json.dumps(asdict(outcome), indent=1))
    return outcome


def _file(folder: Path, part: Part) -> Path:
    return folder / f"{part.name}.json"


def _ran(part: Part, folder: Path) -> Outcome:
    figures, log = folder / f"{part.name}.figures", folder / f"{part.name}.log"
    figures.unlink(missing_ok=True)
    if part.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-rs", *part.tests]
    else:
        command = [sys.executable, "-c", RUNNER, part.function, str(folder), str(figures)]
    started = time.monotonic()
    with PeakMemory() as memory, log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(part.seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # With what it started and did not end.
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    outcome = Outcome(part.name, PASSED, time.monotonic() - started, memory.gib)
    if figures.is_file():
        outcome.figures = json.loads(figures.read_text())
    outcome.why = _failure(part, code, outcome.figures, log)
    if outcome.why:
        outcome.status = FAILED
    return outcome


def _failure(part: Part, code: int | None, figures: dict[str, float], log: Path) -> str:
    """Return why a part did not pass; nothing where it did."""
    said = log.read_text(errors="replace").strip().splitlines() or [""]
    if code is None:
        return f"not done within {part.seconds:g} s; see {log}"
    if code:
        return f"{said[-1][:200]}; see {log}"
    if part.tests and not re.search(r"\d+ passed", said[-1]):
        return f"no test ran: {said[-1][:200]}"
    wrong = [
        f"{name} is {figures.get(name, float('nan')):.4g}, not {least:g} to {most:g}"
        for name, (least, most) in part.aims.items()
        if not least <= figures.get(name, float("nan")) <= most
    ]
    return "; ".join(wrong)

"""`rlhf runs`: which runs there are, whether each lives, and how far it came."""

import fcntl
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.tools import RunsConfig
from rlhf_ray.config.reading.documents import read_document
from rlhf_ray.config.reading.verbs import deduce_verb
from rlhf_ray.runs.folder import CONFIG_FILE, LOCK_FILE
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.records import METRICS_FILE
from rlhf_ray.tracking.run_record import RUN_FILE, RunRecord

DEPTH = 5
"""Of folders below those that are named, in which runs are looked for."""

TELLING = (
    "objective/scores",
    "objective/kl",
    "eval_accuracy",
    "accuracy",
    "rewards/accuracies",
    "eval_loss",
    "loss",
)
"""What tells most of a run, from the first on; two of them are shown."""

RECENT = 20
"""Steps by which the speed of a run is told."""

STATES = ("running", "killed", "stopped", "failed", "finished")
"""In the order in which runs are shown. Killed: it ended without a word, as after SIGKILL; its command goes on."""

NARROWEST = 120
"""Columns that the table takes where the output is no terminal."""


@dataclass(frozen=True)
class RunLine:
    """A run as the table shows it."""

    folder: Path
    verb: str
    state: str
    done: int
    total: int | None
    seconds: float | None
    """Of a step, median of the last ones."""
    newest: float | None
    """Seconds since the run wrote its last metrics."""
    values: dict[str, float]


def run(config: RunsConfig) -> None:
    """Print a table of the runs in some folders.

    Raises:
        BadInput: a folder does not exist, or there is no run in any of them.
    """
    folders = list(dict.fromkeys(folder for given in config.folders for folder in run_folders(given)))
    if not folders:
        raise BadInput(f"folders: no run is in {', '.join(config.folders)}; a run folder has a {RUN_FILE}")
    lines = sorted((line_of(folder, config.metrics) for folder in folders), key=_order)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, NARROWEST))
    console.print(_table(lines, config.metrics))


def run_folders(given: str) -> Iterator[Path]:
    """Find the run folders at or below a folder, in the order of their names.

    Raises:
        BadInput: there is no such folder.
    """
    top = Path(given).expanduser()
    if not top.is_dir():
        raise BadInput(f"folders: {given} is no folder")
    for path, inner, files in os.walk(top):
        if RUN_FILE in files:
            yield Path(path)
        # A run has no other runs in it, and a project's environment is deep.
        below = len(Path(path).relative_to(top).parts)
        inner[:] = [] if RUN_FILE in files or below == DEPTH else sorted(name for name in inner if name[0] != ".")


def line_of(folder: Path, metrics: list[str]) -> RunLine:
    """Read how far a run came.

    Args:
        folder: its folder.
        metrics: whose newest values are shown; none: those that tell most.
    """
    record = RunRecord.read(folder)
    history = History.read(folder)
    newest = {name: found[-1][1] for name, series in history.series.items() if (found := series.finite())}
    shown = metrics or [name for name in TELLING if name in newest][:2]
    steps = history.series.get("step_time")
    times = [seconds for _, seconds in steps.finite()[-RECENT:]] if steps is not None else []
    try:
        written: float | None = time.time() - (folder / METRICS_FILE).stat().st_mtime
    except OSError:
        written = None
    return RunLine(
        folder,
        _verb(folder),
        _state(folder, record),
        history.last_step(),
        record.total_steps if record is not None else None,
        statistics.median(times) if times else None,
        written,
        {name: newest[name] for name in shown if name in newest},
    )


def _state(folder: Path, record: RunRecord | None) -> str:
    if record is None or record.status != "running":
        return record.status if record is not None else "killed"
    try:
        with (folder / LOCK_FILE).open(encoding="utf-8") as lock:
            # A shared lock, and only for a moment: a run that begins just now must find the folder free.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
    except BlockingIOError:
        return "running"
    except OSError:
        pass
    return "killed"


def _verb(folder: Path) -> str:
    try:
        return deduce_verb(read_document(folder / CONFIG_FILE), "")
    except RlhfError:
        return ""


def _order(line: RunLine) -> tuple[int, float]:
    known = STATES.index(line.state) if line.state in STATES else len(STATES)
    return known, line.newest if line.newest is not None else float("inf")


def _table(lines: list[RunLine], metrics: list[str]) -> Table:
    table = Table(title=f"{len(lines)} runs" if len(lines) > 1 else None, title_justify="left")
    for name in ("run", "job", "state", "step", "s a step", "last step", *(metrics or ["reached"])):
        numbers = {"step", "s a step", "last step", *metrics}
        table.add_column(name, justify="right" if name in numbers else "left", overflow="fold", no_wrap=name in numbers)
    for line in lines:
        if metrics:
            values = [f"{line.values[name]:.4g}" if name in line.values else "" for name in metrics]
        else:
            values = [", ".join(f"{name} {value:.4g}" for name, value in line.values.items())]
        table.add_row(
            _near(line.folder),
            line.verb,
            line.state,
            f"{line.done}/{line.total}" if line.total is not None else str(line.done),
            f"{line.seconds:.3g}" if line.seconds is not None else "",
            f"{_ago(line.newest)} ago" if line.newest is not None else "",
            *values,
        )
    return table


def _near(folder: Path) -> str:
    """Return a folder as one would name it from here."""
    whole = folder.resolve()
    return str(whole.relative_to(Path.cwd())) if whole.is_relative_to(Path.cwd()) else str(whole)


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"

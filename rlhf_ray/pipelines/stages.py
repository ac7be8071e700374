"""A pipeline's stages, each a command in a process of its own: run once, timed, resumed where it stopped."""

import ctypes
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from rich.table import Table

from rlhf_ray.config.errors import BadInput, Interrupted, RlhfError
from rlhf_ray.tracking.peak_memory import PeakMemory, held_memory
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.report import duration

STAGES_FILE = "stages.json"
PR_SET_PDEATHSIG = 1
"""Number of Linux's request to be signalled when the parent ends (`prctl`)."""


class StageFailed(RlhfError):
    """A stage ended without its result; the message names it and says how to go on."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StageStopped(RlhfError):
    """A stage was asked to stop and saved what it had."""

    exit_code = 130


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline."""

    name: str
    """Unique in the pipeline."""
    work: Sequence[str] | Callable[[], None]
    """Arguments of `rlhf`, or a function of this process for what takes seconds."""
    makes: Path
    """What is there when the stage is finished, and not before."""


@dataclass(frozen=True)
class StageRecord:
    """Time and memory of a finished stage."""

    name: str
    command: str
    seconds: float
    """Of all its attempts that ended in an orderly way."""
    peak_memory: int | None
    """Bytes that its processes held at most, in attempts that ended well; None where there is none."""
    finished: bool


class Stages:
    """Runs stages in one folder and remembers which are finished.

    A stage that was finished is not repeated, as long as its command is the same and its result is there.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        """Keep `stages.json` in `folder`; `say` takes words for the person who watches.

        Raises:
            BadInput: `stages.json` is not one of ours.
        """
        self._file = folder / STAGES_FILE
        self._say = say
        self.records: dict[str, StageRecord] = {}
        if self._file.exists():
            try:
                found = json.loads(self._file.read_text(encoding="utf-8"))
                self.records = {row["name"]: StageRecord(**row) for row in found}
            except (ValueError, TypeError, KeyError) as error:
                raise BadInput(f"{self._file} is not readable ({error}); move it away to begin anew") from None

    def run(self, stage: Stage) -> None:
        """Run a stage, unless it is finished.

        Raises:
            StageFailed: it failed. StageStopped: it was asked to stop. BadInput: it was finished by another command.
        """
        command = _text(stage)
        before = self.records.get(stage.name)
        if before is not None and before.command != command:
            raise BadInput(
                f"stage {stage.name} was made by another command:\n  then: {before.command}\n  now:  {command}\n"
                "choose another output, or remove that folder to begin anew"
            )
        if before is not None and before.finished and stage.makes.exists():
            self._say(f"{stage.name}: finished before")
            return
        self._say(f"{stage.name}: {command}")
        started = time.monotonic()
        peak: int | None = None
        try:
            peak = _inside(stage.work) if callable(stage.work) else _outside(stage.name, stage.work)
        except (StageFailed, StageStopped):
            raise
        except RlhfError as error:
            raise StageFailed(f"stage {stage.name}: {error}", error.exit_code) from error
        finally:
            seconds = time.monotonic() - started + (before.seconds if before else 0.0)
            done = peak is not None and stage.makes.exists()
            most = max(peak or 0, (before.peak_memory or 0) if before else 0) or None
            self._note(StageRecord(stage.name, command, round(seconds, 2), most, done))
        if not done:
            raise StageStopped(f"stage {stage.name} stopped before its end; the same command goes on from there")

    def _note(self, record: StageRecord) -> None:
        self.records[record.name] = record
        rows = [asdict(one) for one in self.records.values()]
        replace_file(self._file, (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode())


def stage_table(records: Sequence[StageRecord]) -> Table:
    """Make a table of time and memory of each stage, and of all together."""
    table = Table(title="Stages", title_justify="left")
    table.add_column("stage")
    table.add_column("time", justify="right")
    table.add_column("memory at most, GiB", justify="right")
    for record in records:
        memory = "" if not record.peak_memory else f"{record.peak_memory / 2**30:.1f}"
        table.add_row(record.name, duration(record.seconds), memory)
    table.add_row("all", duration(sum(record.seconds for record in records)), "")
    return table


def _text(stage: Stage) -> str:
    return f"(in this process) {stage.makes}" if callable(stage.work) else "rlhf " + shlex.join(stage.work)


def _inside(work: Callable[[], None]) -> int:
    """Do a stage in this process; returns the most bytes that it held (0 where the system does not tell)."""
    memory = PeakMemory()
    try:
        work()
    finally:
        peak = memory.close()
    return peak or 0


def _outside(name: str, arguments: Sequence[str]) -> int:
    """Run `rlhf` in a process of its own; returns the most bytes that its processes held.

    Raises:
        StageFailed: it failed. StageStopped: it was ended by a signal that this process passed on.
    """
    with _forwarding() as (children, forwarded):
        # A session of its own, so that Ctrl-C reaches it once, from here.
        child = subprocess.Popen(
            [sys.executable, "-m", "rlhf_ray.cli", *arguments], preexec_fn=_end_with_parent, start_new_session=True
        )
        children.append(child)
        memory = PeakMemory(look=lambda: held_memory(child.pid))
        code = child.wait()
        peak = memory.close()
    if -code in forwarded or (forwarded and code == Interrupted.exit_code):
        raise StageStopped(f"stage {name} was asked to stop; the same command goes on from what it kept")
    if code:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"
        raise StageFailed(
            f"stage {name}: rlhf {arguments[0]} {how}; its message stands above. Once that is mended, the same command "
            "goes on with this stage",
            code if code > 0 else 1,
        )
    return peak or 0


@contextmanager
def _forwarding() -> Iterator[tuple[list[subprocess.Popen[bytes]], set[int]]]:
    """Hand SIGTERM and Ctrl-C to the child, which saves and leaves; a second one, again, ends it at once.

    Yields a list for the child, and the signals that were handed on.
    """
    children: list[subprocess.Popen[bytes]] = []
    forwarded: set[int] = set()

    def forward(number: int, _frame: FrameType | None) -> None:
        if not children:
            raise KeyboardInterrupt
        for child in children:
            forwarded.add(number)
            child.send_signal(number)

    before: dict[int, Any] = {}
    try:
        for number in (int(signal.SIGTERM), int(signal.SIGINT)):
            before[number] = signal.signal(number, forward)
    except ValueError:
        # Only the main thread may set handlers; a pipeline inside another program is stopped by its host.
        pass
    try:
        yield children, forwarded
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_with_parent() -> None:
    # Else a stage would go on, and hold its folder, after its pipeline was killed.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

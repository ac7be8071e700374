"""Runs a verb of `rlhf` and hands on the rows of its metrics as they are written."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.tracking.curves import draw_panels
from rlhf_ray.tracking.panels import COLOURS, Line, Panel, smoothed

HERE = Path(__file__).parent
LOOK_SECONDS = 0.5
"""Between two looks at the files."""
SHOWN_LINES = 30
"""Of the log of a command that failed."""

Row = dict[str, Any]

HELP = frozenset({"-h", "--help"})
"""Options that ask what there is, and for nothing else."""


def rlhf(verb: str, config: str, *options: str) -> list[str]:
    """Return the command line of a verb with a config of this folder."""
    return [sys.executable, "-m", "rlhf_ray.cli", verb, str(HERE / config), *options]


def run(*command: str) -> None:
    """Run a command and show what it says; leaves where it fails."""
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def follow(command: Sequence[str], log: Path, metrics: Path) -> Iterator[Row]:
    """Run a command with its output in a log; its rows of metrics as they come. Leaves with the log's end if it fails.

    A run that is resumed gives its earlier rows too; steps that it does again come again.
    """
    # As Ctrl-C does, so that the command is not left behind.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    given = 0
    try:
        while True:
            ended = process.poll() is not None
            rows = whole_rows(metrics)
            yield from rows[min(given, len(rows)) :]
            given = len(rows)
            if ended:
                break
            time.sleep(LOOK_SECONDS)
    finally:
        if process.poll() is None:
            # It saves and leaves; the same command goes on from there.
            process.terminate()
            process.wait()
        signal.signal(signal.SIGTERM, before)
    if process.returncode:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-SHOWN_LINES:])
        sys.exit(f"{end}\n{log}: failed with code {process.returncode}")


def whole_rows(path: Path) -> list[Row]:
    """Read the rows of a JSON lines file that another process is writing."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    return [json.loads(line) for line in lines]


def draw(
    path: Path, title: str, rows: Sequence[Row], curves: Sequence[tuple[str, str]], columns: int, unit: str
) -> None:
    """Draw one panel for each (label, name of the metric), noisy ones smoothed, their evaluations dashed."""
    panels = []
    for number, (label, name) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        found = [line(text, key, rows, colour) for text, key in ((label, name), ("held out", f"eval_{name}"))]
        lines = [one for one in found if one is not None]
        if lines:
            panels.append(Panel(label, "", False, lines))
    draw_panels(title, f"{max((row['step'] for row in rows), default=0)} {unit}", panels, path, columns=columns)


def line(label: str, name: str, rows: Sequence[Row], colour: str) -> Line | None:
    points = [(row["step"], row[name]) for row in rows if name in row]
    if not points:
        return None
    steps, values = zip(*points, strict=True)
    held_out = name.startswith("eval_")
    even = None if held_out else smoothed(list(values))
    return Line(name, label, colour, list(steps), even or list(values), list(values) if even else None, held_out)

"""What a person sees while a job runs: bars on a terminal, plain lines in a log."""

import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TextIO

from rlhf_ray.tracking.names import EVALUATION_PREFIX

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def plain_console(stream: Any) -> "Console":
    """Make a console that prints texts as they are: rows of data may look like markup."""
    from rich.console import Console

    return Console(file=stream, highlight=False, markup=False, emoji=False)


def say(text: str) -> None:
    """Print a line on standard output, at once and as it is."""
    plain_console(sys.stdout).print(text, soft_wrap=True)


def make_bar(console: "Console", description: str = "{task.description}", **settings: Any) -> "Progress":
    """Make a bar that goes away at its end; tasks need the field `rate`, a text. `settings` are those of Progress."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn(description, markup=False),
        BarColumn(bar_width=32),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=console,
        transient=True,
        **settings,
    )


if TYPE_CHECKING:
    from rich.console import Console

# A log gets a sign of life this often while a part of a step is long.
HEARTBEAT_SECONDS = 60.0

# What a step's line says, in this order; the first name that was logged counts.
LINE = (
    ("reward", ("reward", "objective/scores", "objective/rlhf_reward"), "{:.3f}"),
    ("loss", ("loss",), "{:.4f}"),
    ("accuracy", ("accuracy", "rewards/accuracies"), "{:.1%}"),
    ("KL", ("objective/kl", "kl"), "{:.3f}"),
    ("entropy", ("policy/entropy_avg", "entropy"), "{:.2f}"),
    ("length", ("completions/mean_length",), "{:.0f}"),
)
PARTS = {
    "generate": "generating",
    "score": "scoring",
    "train": "training",
    "sync": "syncing weights",
    "evaluate": "evaluating",
    "checkpoint": "saving",
    "idle": "idle",
}


def step_line(step: int, total_steps: int | None, metrics: Mapping[str, float]) -> str:
    """Write one line of a step in plain words, from whatever was logged; empty where nothing fits."""
    said = _said(metrics, "")
    held_out = _said(metrics, EVALUATION_PREFIX)
    if held_out:
        said.append("held out: " + ", ".join(held_out))
    if "step_time" in metrics:
        said.append(f"{metrics['step_time']:.1f} s")
    if "tokens_per_second" in metrics:
        said.append(f"{metrics['tokens_per_second']:,.0f} tokens/s")
    if not said:
        return ""
    head = f"step {step}/{total_steps}" if total_steps else f"step {step}"
    return "  ".join([head, *said])


def _said(metrics: Mapping[str, float], prefix: str) -> list[str]:
    said = []
    for word, names, form in LINE:
        found = next((metrics[prefix + name] for name in names if prefix + name in metrics), None)
        if found is not None:
            said.append(f"{word} {form.format(found)}")
    return said


class Terminal:
    """Bars where the stream is a terminal, plain lines elsewhere. Safe to call from several threads."""

    def __init__(
        self,
        total_steps: int | None,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        bars: bool = True,
    ) -> None:
        """Show a run of so many steps; without `bars` where somebody types, whose line a bar would overwrite."""
        self._stream = stream or sys.stdout
        self._total_steps = total_steps
        self._clock = clock
        self._lock = threading.Lock()
        self._part: tuple[int, str] | None = None
        self._part_began = self._spoke = clock()
        console = plain_console(self._stream)
        # A dumb terminal (an editor's shell, CI) cannot redraw a line: it gets the lines of a log.
        drawn = bars and console.is_terminal and not console.is_dumb_terminal
        self._bars = _Bars(console, total_steps) if drawn else None

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Print the line of a finished step (or evaluation)."""
        line = step_line(step, self._total_steps, metrics)
        if self._bars is not None and any(not name.startswith(EVALUATION_PREFIX) for name in metrics):
            self._bars.step_done(step)
        if line:
            self.message(line)

    def progress(self, step: int, part: str, done: int | None, total: int | None, tokens: int | None) -> None:
        """Show how far a part of the step is."""
        with self._lock:
            now = self._clock()
            begins = self._part != (step, part)
            if begins:
                self._part, self._part_began, self._spoke = (step, part), now, now
            seconds = now - self._part_began
            if self._bars is not None:
                self._bars.part(PARTS.get(part, part), begins, done, total, _rate(tokens, seconds))
                return
            late = now - self._spoke >= HEARTBEAT_SECONDS
            if late:
                self._spoke = now
        if late:
            amount = f" {done}" + (f" of {total}" if total else "") if done is not None else ""
            self.message(
                f"step {step}: {PARTS.get(part, part)}{amount}, {seconds:.0f} s {_rate(tokens, seconds)}".rstrip()
            )

    def message(self, text: str) -> None:
        """Print a line, above the bars where there are some."""
        encoding = self._stream.encoding or "utf-8"
        # A log on a machine without UTF-8 shows question marks rather than ending the run.
        shown = text.encode(encoding, "replace").decode(encoding)
        with self._lock:
            if self._bars is not None:
                self._bars.print(shown)
            else:
                self._stream.write(shown + "\n")
                self._stream.flush()

    def close(self) -> None:
        """Take the bars away."""
        if self._bars is not None:
            self._bars.close()


def _rate(tokens: int | None, seconds: float) -> str:
    # Within the first tenth of a second a rate says nothing.
    return f"{tokens / seconds:,.0f} tokens/s" if tokens and seconds > 0.1 else ""


class _Bars:
    """A bar of steps over a bar of the step's present part."""

    def __init__(self, console: "Console", total_steps: int | None) -> None:
        self._console = console
        # A step may take minutes, and the time left is estimated from several.
        settings = {"refresh_per_second": 4, "speed_estimate_period": 3600}
        self._progress = make_bar(self._console, "{task.description:<16}", **settings)
        self._steps = self._progress.add_task("steps", total=total_steps, rate="")
        self._part = self._progress.add_task("starting", total=None, rate="")
        self._counting = False
        self._progress.start()

    def step_done(self, step: int) -> None:
        if self._counting:
            self._progress.update(self._steps, completed=step)
        else:
            # A resumed run has not done its earlier steps in the time since it began.
            self._progress.reset(self._steps, completed=step)
            self._counting = True

    def part(self, name: str, begins: bool, done: int | None, total: int | None, rate: str) -> None:
        fields: dict[str, Any] = {"description": name, "total": total, "rate": rate}
        if begins:
            self._progress.reset(self._part)
        self._progress.update(self._part, completed=done or 0, **fields)

    def print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()

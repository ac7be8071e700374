"""The tracker of a job: one call, and metrics reach run folder, wandb, TensorBoard, picture and terminal."""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlhf_ray.config.run import TrackingConfig
from rlhf_ray.redaction.texts import each_text, redact_text
from rlhf_ray.tracking.peak_memory import PeakMemory
from rlhf_ray.tracking.pictures import PictureWriter
from rlhf_ray.tracking.records import EVALUATION, METRICS_FILE, SAMPLES_FILE, SHOWN, RecordFile
from rlhf_ray.tracking.run_record import RunRecord, environment
from rlhf_ray.tracking.tensorboard_writer import TensorboardWriter
from rlhf_ray.tracking.terminal import Terminal
from rlhf_ray.tracking.text import one_line
from rlhf_ray.tracking.wandb_writer import WandbWriter, wandb_mode
from rlhf_ray.tracking.writer import SampleRow, Status, Writer


class Tracker:
    """Everything that a job says, from the driver's side.

    The records in the run folder are the truth, and failing to write them raises RlhfError. All other places are
    best effort: an error in one is shown once and never stops or holds up a run.
    """

    run_id: str
    """The run's id in wandb; belongs into checkpoints, so that a resumed job continues the same run."""

    def __init__(self, folder: Path, record: RunRecord, tracking: TrackingConfig, terminal: Terminal) -> None:
        self.run_id = record.run_id
        self._record = record
        self._folder = folder
        self._shown_samples = tracking.samples_per_step
        self._terminal = terminal
        self._metrics = RecordFile(folder / METRICS_FILE)
        self._samples = RecordFile(folder / SAMPLES_FILE)
        self._writers: dict[str, Writer] = {}
        self._warned: set[str] = set()
        self._warn_lock = threading.Lock()
        self._total_steps = record.total_steps
        self._memory = PeakMemory()
        self._last_step = 0
        self._closed = False

    @classmethod
    def open(
        cls,
        folder: Path,
        tracking: TrackingConfig,
        config: Mapping[str, Any],
        run_id: str | None = None,
        *,
        total_steps: int | None = None,
        notes: Sequence[str] = (),
        terminal: Terminal | None = None,
    ) -> "Tracker":
        """Start tracking into a run folder.

        Args:
            folder: the run folder; made if missing.
            tracking: which trackers to use.
            config: the resolved config, for wandb; secrets in it are hidden.
            run_id: the id in the checkpoint that the job resumes from. None begins a new run, and drops what an
                earlier attempt that reached no checkpoint left in the folder.
            total_steps: steps of the whole run, for the bar.
            notes: lines that the person who watches shall see first.
            terminal: where to show progress; standard output by default.

        Raises:
            RlhfError: the folder cannot be written.
        """
        resumed = run_id is not None
        record = RunRecord(run_id or secrets.token_hex(4), total_steps, environment())
        tracker = cls(folder, record, tracking, terminal or Terminal(total_steps))
        record.write(folder)
        if not resumed:
            lost = tracker._metrics.truncate_after(-1)
            tracker._samples.truncate_after(-1)
            if lost >= 1:
                tracker.message(f"the earlier start came to step {lost}, but saved no checkpoint: beginning anew")
        for note in notes:
            tracker.message(note)
        tracker._add_writers(tracking, {**config, "environment": record.environment}, resumed)
        return tracker

    @property
    def last_step(self) -> int:
        """The newest step that was logged, or that the run went back to."""
        return self._last_step

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step (names: rlhf_ray/tracking/names.py), and print the step's line."""
        numbers = {name: float(value) for name, value in metrics.items()}
        self._last_step = max(self._last_step, step)
        self._metrics.append({"step": step, "time": round(time.time(), 3), **numbers})
        self._each(lambda writer: writer.log(step, numbers))
        self._safely("terminal", lambda: self._terminal.step(step, numbers))

    def samples(self, step: int, rows: Sequence[SampleRow], kind: str = "train") -> None:
        """Record samples: all rows of an evaluation, the first `samples_per_step` of a training step.

        Rows have `prompt`, `response`, `rewards` {source: score}, and what else is known of them. The report pairs
        rows of the kinds EVALUATION and SHOWN by prompt, before and after.
        """
        kept = each_text(rows if kind in (EVALUATION, SHOWN) else rows[: self._shown_samples])
        if not kept:
            return
        for row in kept:
            self._samples.append({"step": step, "kind": kind, **row})
        self._each(lambda writer: writer.samples(step, kept, kind))
        self._safely("terminal", lambda: self._terminal.message(_sample_line(kept[0])))

    def progress(
        self, step: int, part: str, done: int | None = None, total: int | None = None, tokens: int | None = None
    ) -> None:
        """Show how far a part of a step is: generate, score, train, sync, idle. Cheap enough for every sample."""
        self._safely("terminal", lambda: self._terminal.progress(step, part, done, total, tokens))

    def message(self, text: str) -> None:
        """Print a line for the person who watches."""
        self._safely("terminal", lambda: self._terminal.message(redact_text(text)))

    def warn(self, text: str) -> None:
        """Print a warning, once for each text."""
        with self._warn_lock:
            if text in self._warned:
                return
            self._warned.add(text)
        self.message(f"warning: {text}")

    def truncate_after(self, step: int) -> None:
        """Drop what was recorded after the step that a job resumes from, so that no step appears twice."""
        self._last_step = step
        self._metrics.truncate_after(step)
        self._samples.truncate_after(step)
        self._each(lambda writer: writer.truncate_after(step))

    def resume_after(self, step: int, source: str) -> None:
        """Drop what was recorded after a checkpoint's step, and say where the job goes on.

        Args:
            step: of the checkpoint.
            source: the checkpoint's folder.
        """
        self.truncate_after(step)
        of = f" of {self._total_steps}" if self._total_steps is not None else ""
        self.message(f"going on after step {step}{of}, from {source}")

    def close(self, status: Status = "finished") -> None:
        """Finish: last picture and report, wandb within a bounded time. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self._safely("run record", lambda: self._record.ended(status, self._memory.close()).write(self._folder))
        self._each(lambda writer: writer.close(status))
        self._metrics.close()
        self._samples.close()
        self._safely("terminal", self._terminal.close)

    def __enter__(self) -> Self:
        """Open a block; it closes as failed after an error, as stopped where steps are left, else as finished."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        complete = self._total_steps is None or self._last_step >= self._total_steps
        self.close("failed" if kind is not None else "finished" if complete else "stopped")

    def _add_writers(self, tracking: TrackingConfig, config: Mapping[str, Any], resumed: bool) -> None:
        makers: dict[str, Callable[[], Writer]] = {"curves and report": lambda: PictureWriter(self._folder, self.warn)}
        if tracking.tensorboard:
            makers["TensorBoard"] = lambda: TensorboardWriter(self._folder)
        if wandb_mode(tracking) != "off":
            makers["wandb"] = lambda: WandbWriter(self._folder, tracking, config, self.run_id, resumed, self.warn)
        for name, make in makers.items():
            try:
                self._writers[name] = make()
            except Exception as error:
                self.warn(f"{name}: not used: {_reason(error)}")

    def _each(self, act: Callable[[Writer], None]) -> None:
        for name, writer in self._writers.items():
            self._safely(name, lambda writer=writer: act(writer))  # type: ignore[misc]

    def _safely(self, name: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:
            if name == "terminal":
                # A closed pipe (`| head`) is no reason to stop training.
                return
            self.warn(f"{name}: {_reason(error)}; training goes on")


def _reason(error: Exception) -> str:
    return redact_text(f"{type(error).__name__}: {error}").splitlines()[0][:300]


def _sample_line(row: SampleRow) -> str:
    prompt, response = one_line(_asked(row.get("prompt")), 40), one_line(_text(row.get("response")), 80)
    rewards = row.get("rewards") or {}
    scores = ", ".join(f"{name} {value:.2f}" for name, value in rewards.items() if value is not None)
    return f"    {prompt} > {response}" + (f"  ({scores})" if scores else "")


def _asked(prompt: Any) -> str:
    """Return what the user said last, where the prompt is a conversation: it may begin with a long system message."""
    if not isinstance(prompt, list):
        return _text(prompt)
    turns = [turn for turn in prompt if isinstance(turn, Mapping)]
    said = [turn for turn in turns if turn.get("role") == "user"] or turns
    return _text(said[-1].get("content")) if said else ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value or "")

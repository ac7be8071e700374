"""Weights & Biases, on a thread of its own, so that an outage, a hang or a broken login costs one line of warning.

A run is one run there however often it was killed and resumed. Online the service knows what it has; offline each
start leaves a folder of its own, all of one id, which `wandb sync` appends to one another in the order of their starts.
Nothing that wandb has can be taken back, so each step is given once: what a kill kept from it comes from
`metrics.jsonl`, and a step that is made again keeps the values of its first time.
"""

import importlib
import os
import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_ray.config.run import TrackingConfig
from rlhf_ray.redaction.texts import redact, redact_text
from rlhf_ray.tracking.records import METRICS_FILE, read_records
from rlhf_ray.tracking.wandb_files import last_step
from rlhf_ray.tracking.writer import SampleRow, Status, Warn

INIT_SECONDS = 60
# Upload of what is left over when a run ends; what does not make it stays on disk.
CLOSE_SECONDS = {"online": 60.0, "offline": 20.0}
# Some 1,000 steps at ten calls each; a writer that is that far behind is not coming back.
QUEUE_LENGTH = 10_000
FLUSH_SECONDS = 0.5
"""After which wandb's own process has written what it was given; by itself it waits 10 seconds and more."""
GATHER_SECONDS = 0.5
"""For all that a step says to come together, as one row."""
EXIT_CODES: dict[Status, int] = {"finished": 0, "stopped": 0, "failed": 1}


def wandb_mode(tracking: TrackingConfig) -> str:
    """Return `online`, `offline` or `off`, with `auto` decided by WANDB_MODE and WANDB_API_KEY."""
    if tracking.wandb != "auto":
        return tracking.wandb
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("online", "offline"):
        return asked
    if asked in ("disabled", "dryrun"):
        return "off" if asked == "disabled" else "offline"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


class WandbWriter:
    """Sends to wandb in the background. The module is imported, and the run started, on that thread."""

    def __init__(
        self, folder: Path, tracking: TrackingConfig, config: Mapping[str, Any], run_id: str, resumed: bool, warn: Warn
    ) -> None:
        self._mode = wandb_mode(tracking)
        self._warn = warn
        self._folder = folder
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]]] = queue.Queue(QUEUE_LENGTH)
        self._dropped = False
        self._status: Status = "finished"
        self._run_id, self._resumed = run_id, resumed
        self._row: dict[str, Any] = {}
        """What came of the newest step."""
        self._last = -1
        """The newest step that wandb was given, in this start or an earlier one."""
        self._again = -1
        """Steps up to this one are made again, and wandb has them."""
        self._options = {
            "id": run_id,
            "project": tracking.project,
            "name": tracking.name or folder.name,
            "dir": str(folder),
            "mode": self._mode,
            "config": redact(config),
            # Offline it is for `wandb sync`, which then looks at what the service has.
            "resume": "allow" if resumed else None,
            "reinit": "create_new",
        }
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics; never waits."""
        self._put("log", step, dict(metrics))

    def samples(self, step: int, rows: Sequence[SampleRow], kind: str) -> None:
        """Queue the samples as a table; never waits."""
        self._put("samples", step, [dict(row) for row in rows], kind)

    def truncate_after(self, step: int) -> None:
        """Go on from a step: give what wandb lacks up to there, and from then on what it does not have."""
        self._put("go on", step)

    def close(self, status: Status) -> None:
        """Finish the run, waiting at most CLOSE_SECONDS for what is left."""
        self._status = status
        self._put("stop")
        seconds = CLOSE_SECONDS[self._mode]
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._warn(f"wandb: not finished after {seconds:.0f} s; left in {self._folder / 'wandb'} for `wandb sync`")

    def _put(self, kind: str, *arguments: Any) -> None:
        try:
            self._queue.put_nowait((kind, arguments))
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                self._warn("wandb: does not keep up; metrics are left out there and kept in metrics.jsonl")

    def _work(self) -> None:
        try:
            wandb = importlib.import_module("wandb")
            run = self._start(wandb)
        except BaseException as error:
            # Including SystemExit, which wandb has raised for a refused login.
            self._warn(f"wandb: off for this run: {_first_line(error)}")
            return
        warned = False
        while True:
            kind, arguments = self._take()
            try:
                if kind == "stop":
                    self._give(run)
                    run.finish(exit_code=EXIT_CODES[self._status])
                    return
                self._send(wandb, run, kind, arguments)
            except Exception as error:
                if not warned:
                    warned = True
                    self._warn(f"wandb: {_first_line(error)}; training goes on, metrics are in metrics.jsonl")
                if kind == "stop":
                    return

    def _take(self) -> tuple[str, tuple[Any, ...]]:
        """Wait for what comes next; "give" where nothing comes to a row that was begun."""
        try:
            return self._queue.get(timeout=GATHER_SECONDS if self._row else None)
        except queue.Empty:
            return "give", ()

    def _start(self, wandb: Any) -> Any:
        settings = wandb.Settings(
            init_timeout=INIT_SECONDS,
            # Before `close` gives up on this thread.
            finish_timeout=0.8 * CLOSE_SECONDS[self._mode],
            silent=True,
            # Wrapping the console would garble the progress bars.
            console="off",
            # Command line and environment may hold secrets; the report's environment is ours.
            x_disable_meta=True,
            disable_code=True,
            disable_git=True,
        )
        if self._resumed and self._mode == "offline":
            self._last = last_step(self._folder, self._run_id)
        with _flushed(wandb.Settings):
            run = wandb.init(settings=settings, **self._options)
        if self._resumed and self._mode == "online":
            self._last = int(run.summary.get("step", -1))
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run

    def _send(self, wandb: Any, run: Any, kind: str, arguments: tuple[Any, ...]) -> None:
        match kind, arguments:
            case "log", (step, metrics):
                self._add(run, step, metrics)
            case "samples", (step, rows, name):
                columns = list(dict.fromkeys(column for row in rows for column in row))
                cells = [[_cell(row.get(column)) for column in columns] for row in rows]
                self._add(run, step, {f"samples/{name}": wandb.Table(columns=columns, data=cells)})
            case "go on", (step,):
                self._go_on(run, step)
            case _:
                self._give(run)

    def _add(self, run: Any, step: int, values: Mapping[str, Any]) -> None:
        """Put values into the row of a step, once the row before is given; wandb may have that step."""
        if step <= self._again:
            return
        if self._row and self._row["step"] != step:
            self._give(run)
        self._row |= {"step": step, **values}

    def _give(self, run: Any) -> None:
        row, self._row = self._row, {}
        if row:
            run.log(row)
            self._last = max(self._last, row["step"])

    def _go_on(self, run: Any, step: int) -> None:
        self._give(run)
        self._again = self._last if self._last > step else -1
        # Those of an earlier start, which a kill kept from wandb.
        for record in read_records(self._folder / METRICS_FILE):
            if self._last < record["step"] <= step:
                self._add(run, record["step"], {name: value for name, value in record.items() if name != "time"})
        self._give(run)


@contextmanager
def _flushed(settings: Any) -> Iterator[None]:
    """Let a run that begins meanwhile write its file every FLUSH_SECONDS, which wandb's Python does not pass on."""
    told = getattr(settings, "to_proto", None)
    if told is None:
        yield
        return

    def to_proto(self: Any) -> Any:
        message = told(self)
        if "x_transaction_log_flush_interval" in message.DESCRIPTOR.fields_by_name:
            message.x_transaction_log_flush_interval.value = FLUSH_SECONDS
        return message

    settings.to_proto = to_proto
    try:
        yield
    finally:
        settings.to_proto = told


def _cell(value: Any) -> str | float | int | None:
    return value if isinstance(value, str | float | int) or value is None else str(value)


def _first_line(error: BaseException) -> str:
    lines = redact_text(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__

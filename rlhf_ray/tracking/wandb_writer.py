"""Weights & Biases, on a thread of its own, so that an outage, a hang or a broken login costs one line of warning.

An online run continues under its id after a resume. wandb cannot resume an offline run: there each start leaves one
more folder, but all have the run's id and count the same steps, so `wandb sync --append` joins them.
"""

import importlib
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.config.run import TrackingConfig
from rlhf_ray.redaction.texts import redact, redact_text
from rlhf_ray.tracking.writer import SampleRow, Status, Warn

INIT_SECONDS = 60
# Upload of what is left over when a run ends; what does not make it stays on disk.
CLOSE_SECONDS = {"online": 60.0, "offline": 20.0}
# Some 1,000 steps at ten calls each; a writer that is that far behind is not coming back.
QUEUE_LENGTH = 10_000
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
        self._options = {
            "id": run_id,
            "project": tracking.project,
            "name": tracking.name or folder.name,
            "dir": str(folder),
            "mode": self._mode,
            "config": redact(config),
            # Offline, wandb cannot know an earlier part of the run and would only warn about the request.
            "resume": "allow" if resumed and self._mode == "online" else None,
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
        """Do nothing: wandb keeps what it has; steps that run again are drawn over by their own number."""

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
            kind, arguments = self._queue.get()
            try:
                if kind == "stop":
                    run.finish(exit_code=EXIT_CODES[self._status])
                    return
                self._send(wandb, run, kind, arguments)
            except Exception as error:
                if not warned:
                    warned = True
                    self._warn(f"wandb: {_first_line(error)}; training goes on, metrics are in metrics.jsonl")
                if kind == "stop":
                    return

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
        run = wandb.init(settings=settings, **self._options)
        run.define_metric("step", hidden=True)
        run.define_metric("*", step_metric="step")
        return run

    def _send(self, wandb: Any, run: Any, kind: str, arguments: tuple[Any, ...]) -> None:
        if kind == "log":
            step, metrics = arguments
            run.log({"step": step, **metrics})
            return
        step, rows, name = arguments
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[_cell(row.get(column)) for column in columns] for row in rows]
        run.log({"step": step, f"samples/{name}": wandb.Table(columns=columns, data=cells)})


def _cell(value: Any) -> str | float | int | None:
    return value if isinstance(value, str | float | int) or value is None else str(value)


def _first_line(error: BaseException) -> str:
    lines = redact_text(str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__

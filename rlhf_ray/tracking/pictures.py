"""Keeping `curves.png` and `report.html` of a run up to date without holding up the run."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.writer import SampleRow, Status, Warn

CURVES_FILE = "curves.png"
REPORT_FILE = "report.html"
# Drawing may take this share of a run's time, and is not worth repeating more often than this.
DRAWING_SHARE = 0.02
SHORTEST_PAUSE_SECONDS = 10.0
LAST_DRAWING_SECONDS = 60.0


def draw(folder: Path, history: History) -> None:
    """Draw both files from a history and the rest of the run folder, each replaced whole."""
    # matplotlib takes half a second to import; jobs that end in bad input never need it.
    from rlhf_ray.tracking.curves import draw_curves
    from rlhf_ray.tracking.report import write_report

    draw_curves({folder.name: history}, folder / CURVES_FILE)
    write_report(folder, history, folder / REPORT_FILE)


class PictureWriter:
    """Redraws on a thread of its own, now and then while the run goes on and once at its end."""

    def __init__(
        self,
        folder: Path,
        warn: Warn,
        drawing: Callable[[Path, History], None] = draw,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._warn = warn
        self._draw = drawing
        self._clock = clock
        self._history = History.read(folder)
        self._thread: threading.Thread | None = None
        self._next = clock()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the metrics in, and start a drawing when one is due and none is under way."""
        self._history.add(step, metrics)
        if self._clock() >= self._next and (self._thread is None or not self._thread.is_alive()):
            self._start()

    def samples(self, step: int, rows: Sequence[SampleRow], kind: str) -> None:
        """Do nothing: the report reads samples from the run folder."""

    def truncate_after(self, step: int) -> None:
        """Forget what came after a step."""
        self._history.truncate_after(step)

    def close(self, status: Status) -> None:
        """Draw for the last time."""
        if self._thread is not None:
            self._thread.join(LAST_DRAWING_SECONDS)
        self._start()
        assert self._thread is not None
        self._thread.join(LAST_DRAWING_SECONDS)
        if self._thread.is_alive():
            self._warn(f"{CURVES_FILE} and {REPORT_FILE} are not finished; `rlhf plot {self._folder}` draws them")

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, args=(self._history.copy(),), name="drawing", daemon=True)
        self._thread.start()

    def _work(self, history: History) -> None:
        began = self._clock()
        try:
            self._draw(self._folder, history)
        except Exception as error:
            self._warn(f"{CURVES_FILE} and {REPORT_FILE}: {type(error).__name__}: {error}; training goes on")
        now = self._clock()
        self._next = now + max(SHORTEST_PAUSE_SECONDS, (now - began) / DRAWING_SHARE)

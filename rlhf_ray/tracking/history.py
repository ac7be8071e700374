"""The metrics of a run in memory: what the curves and the report are drawn from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.tracking.records import METRICS_FILE, read_records

ROW_FIELDS = ("step", "time")


@dataclass(slots=True)
class Series:
    """One metric: its value (NaN where it was not a number) at each step at which it was logged."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def finite(self) -> list[tuple[int, float]]:
        """Return steps and values without NaN and infinity."""
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]


class History:
    """Series by metric name, in the order of first appearance."""

    def __init__(self) -> None:
        self.series: dict[str, Series] = {}

    @classmethod
    def read(cls, folder: Path) -> "History":
        """Read the history of a run folder; empty where nothing was logged."""
        history = cls()
        for row in read_records(folder / METRICS_FILE):
            numbers = {
                name: math.nan if value is None else float(value)
                for name, value in row.items()
                if name not in ROW_FIELDS and (value is None or isinstance(value, int | float))
            }
            history.add(row["step"], numbers)
        return history

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append a step's metrics."""
        for name, value in metrics.items():
            series = self.series.setdefault(name, Series())
            series.steps.append(step)
            series.values.append(float(value))

    def truncate_after(self, step: int) -> None:
        """Forget later steps."""
        for name, series in list(self.series.items()):
            kept = [pair for pair in zip(series.steps, series.values, strict=True) if pair[0] <= step]
            if kept:
                self.series[name] = Series([pair[0] for pair in kept], [pair[1] for pair in kept])
            else:
                del self.series[name]

    def copy(self) -> "History":
        """Return a snapshot that a drawing thread may read while the run goes on."""
        copied = History()
        copied.series = {name: Series(list(item.steps), list(item.values)) for name, item in self.series.items()}
        return copied

    def last_step(self) -> int:
        """Return the latest step with a metric; 0 before the first."""
        return max((series.steps[-1] for series in self.series.values()), default=0)

"""Panels as inline SVG for the report: geometry only, the template writes the markup and escapes the labels."""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.ticker import MaxNLocator

from rlhf_ray.tracking.panels import Line, Panel, StepTimes, part_colour, short_number, tick_labels

WIDTH, HEIGHT = 360.0, 190.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 8.0, 22.0
# A screen shows no more points than this on one curve; longer ones are averaged in stretches.
MOST_POINTS = 300
MOST_BARS = 60


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on an axis, in SVG units."""

    position: float
    label: str


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a chart; `points` as SVG writes them."""

    label: str
    colour: str
    points: str
    faint: str
    dots: list[tuple[float, float]]
    dashed: bool
    last: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A panel ready for the template. `hover` is JSON for the script that reads values under the pointer."""

    title: str
    unit: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    curves: list[Curve]
    hover: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A rectangle of the stacked step times."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    text: str


@dataclass(frozen=True, slots=True)
class TimeShare:
    """One part's share of the run's time."""

    part: str
    colour: str
    seconds: float
    share: float


class Axis:
    """Values to SVG units along one axis."""

    def __init__(self, low: float, high: float, first: float, last: float, *, log: bool = False) -> None:
        """Map values to places: least and greatest value, above 0 for a logarithmic axis, and where they stand."""
        self._log = log
        self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)
        # A single value stands at the beginning.
        self._span = (self._high - self._low) or 1.0
        self._first, self._last = first, last

    def place(self, value: float) -> float:
        """Return where a value stands on the axis."""
        share = ((math.log10(value) if self._log else value) - self._low) / self._span
        return round(self._first + share * (self._last - self._first), 1)

    def ticks(self, most: int, *, whole: bool = False) -> list[Tick]:
        """Mark round values, or powers of ten on a logarithmic axis, with labels that no two share.

        Args:
            most: intervals between marks.
            whole: at whole numbers alone, written out.
        """
        if self._log:
            powers = range(math.ceil(self._low), math.floor(self._high) + 1)
            every = max(1, len(powers) // most)
            return [Tick(self.place(10.0**power), f"1e{power}") for power in powers[::every]]
        marks = MaxNLocator(most, integer=whole).tick_values(self._low, self._low + self._span)
        shown = [float(mark) for mark in marks if self._low <= mark <= self._high]
        labels = [f"{mark:g}" for mark in shown] if whole else tick_labels(shown)
        return [Tick(self.place(mark), label) for mark, label in zip(shown, labels, strict=True)]


def _axes(panel: Panel) -> tuple[Axis, Axis]:
    """Make the axes of the steps and of the values."""
    steps = [step for line in panel.lines for step in line.steps]
    values = [value for line in panel.lines for value in line.faint or line.values]
    low, high = min(values), max(values)
    if not panel.log_scale:
        # A constant would fill the panel with its rounding errors.
        spread = max(high - low, max(abs(low), abs(high)) * 0.02 or 0.1)
        middle = (low + high) / 2
        low, high = middle - spread * 0.55, middle + spread * 0.55
    across = Axis(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    return across, Axis(low, high, HEIGHT - BOTTOM, TOP, log=panel.log_scale)


def make_chart(panel: Panel) -> Chart:
    """Lay out one panel."""
    axes = across, up = _axes(panel)
    curves = [_curve(line, axes) for line in panel.lines]
    steps = [step for line in panel.lines for step in line.steps]
    read = {"first": min(steps), "last": max(steps), "lines": [_readable(line) for line in panel.lines]}
    return Chart(panel.title, panel.unit, across.ticks(5, whole=True), up.ticks(4), curves, json.dumps(read))


def _readable(line: Line) -> dict[str, Any]:
    # What was logged, not what was smoothed, is what a reader of values wants.
    steps, values = shorten(line.steps, line.faint or line.values)
    return {
        "label": line.label,
        "steps": [round(step, 1) for step in steps],
        "values": [float(f"{value:.4g}") for value in values],
    }


def _curve(line: Line, axes: tuple[Axis, Axis]) -> Curve:
    places = _places(*shorten(line.steps, line.values), axes)
    faint = _places(*shorten(line.steps, line.faint), axes) if line.faint is not None else []
    dots = places if line.held_out or len(places) == 1 else []
    last = short_number((line.faint or line.values)[-1])
    return Curve(line.label, line.colour, polyline(places), polyline(faint), dots, line.held_out, last)


def _places(steps: list[float], values: list[float], axes: tuple[Axis, Axis]) -> list[tuple[float, float]]:
    across, up = axes
    return list(zip(map(across.place, steps), map(up.place, values), strict=True))


def polyline(places: Iterable[tuple[float, float]]) -> str:
    """Write places as the `points` of an SVG element."""
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def shorten(steps: list[int], values: list[float]) -> tuple[list[float], list[float]]:
    """Return at most MOST_POINTS points, each the mean of a stretch of equal length."""
    if len(steps) <= MOST_POINTS:
        return [float(step) for step in steps], list(values)
    edges = [round(index * len(steps) / MOST_POINTS) for index in range(MOST_POINTS + 1)]
    stretches = list(pairwise(edges))
    return (
        [sum(steps[start:end]) / (end - start) for start, end in stretches],
        [sum(values[start:end]) / (end - start) for start, end in stretches],
    )


def time_shares(times: StepTimes) -> list[TimeShare]:
    """Return each part's share of the time of all steps, in the order of a step."""
    totals = times.totals()
    whole = sum(totals.values()) or 1.0
    return [TimeShare(part, part_colour(part), seconds, seconds / whole) for part, seconds in totals.items()]


def time_bars(times: StepTimes, width: float, height: float) -> list[Bar]:
    """Stack bars of the steps' parts; many steps are averaged so that at most MOST_BARS are drawn."""
    count = min(len(times.steps), MOST_BARS)
    edges = [round(index * len(times.steps) / count) for index in range(count + 1)] if count else []
    stacks = [
        {part: sum(seconds[start:end]) / (end - start) for part, seconds in times.parts.items()}
        for start, end in pairwise(edges)
    ]
    tallest = max((sum(stack.values()) for stack in stacks), default=0.0) or 1.0
    pitch = width / max(count, 1)
    bars = []
    for index, stack in enumerate(stacks):
        first, last = times.steps[edges[index]], times.steps[edges[index + 1] - 1]
        name = f"step {first}" if first == last else f"steps {first} to {last}, mean"
        floor = height
        for part, seconds in stack.items():
            size = seconds / tallest * height
            floor -= size
            text = f"{name}: {part} {seconds:.2f} s"
            bars.append(
                Bar(
                    round(index * pitch, 2),
                    round(floor, 2),
                    round(pitch * 0.86, 2),
                    round(size, 2),
                    part_colour(part),
                    text,
                )
            )
    return bars

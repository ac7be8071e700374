"""Figures of the comparison page as inline SVG: geometry only, the template writes the markup and escapes labels."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ray.evaluation.statistics import Estimate
from rlhf_ray.tracking.charts import Axis, Tick, polyline
from rlhf_ray.tracking.panels import COLOURS, short_number

WIDTH = 360.0
ROW, TOP, BOTTOM = 26.0, 6.0, 22.0
LEFT, RIGHT = 96.0, 66.0
BINS = 24
TICKS = 4
PLOT_HEIGHT = 200.0
PLOT_LEFT, PLOT_RIGHT, PLOT_TOP, PLOT_BOTTOM = 44.0, 12.0, 10.0, 34.0
LONGEST_NAME = 14


@dataclass(frozen=True, slots=True)
class BarRow:
    """A model's value, with its interval as a whisker."""

    name: str
    y: float
    x: float
    width: float
    low: float | None
    high: float | None
    colour: str
    text: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Values of models below one another. `title` and `unit` as shown above."""

    title: str
    unit: str
    height: float
    zero: float
    """Where the bars begin."""
    rows: list[BarRow]


@dataclass(frozen=True, slots=True)
class Point:
    """A model in a plane."""

    name: str
    x: float
    y: float
    x_low: float
    x_high: float
    y_low: float
    y_high: float
    colour: str


@dataclass(frozen=True, slots=True)
class Plane:
    """Models by two figures."""

    title: str
    x_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]


@dataclass(frozen=True, slots=True)
class Outline:
    """Spread of a model's values, as a closed line."""

    name: str
    colour: str
    points: str


@dataclass(frozen=True, slots=True)
class Spread:
    """Distributions of a score over answers, one a model."""

    title: str
    x_ticks: list[Tick]
    outlines: list[Outline]


def colour_of(index: int) -> str:
    """Return the colour of the model at a place, everywhere the same."""
    return COLOURS[index % len(COLOURS)]


def shortened(name: str) -> str:
    """Shorten a name so that it fits beside a bar."""
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"


def make_bars(
    title: str,
    unit: str,
    values: Mapping[str, Estimate | float | None],
    show: Callable[[float], str] = short_number,
) -> Bars | None:
    """Make bars of the models that have a finite value; None where none has.

    Args:
        title: of the figure.
        unit: shown beside it.
        values: by model, in the order of colours.
        show: how a value is written.
    """
    known = {name: _bounds(value) for name, value in values.items()}
    ends = [end for bounds in known.values() if bounds for end in bounds if end is not None]
    if not ends:
        return None
    lowest, highest = min(0.0, *ends), max(0.0, *ends)
    scale = (WIDTH - LEFT - RIGHT) / ((highest - lowest) or 1.0)

    def place(value: float) -> float:
        return round(LEFT + (value - lowest) * scale, 1)

    rows: list[BarRow] = []
    for index, (name, bounds) in enumerate(known.items()):
        if bounds is None:
            continue
        value, low, high = bounds
        y = TOP + ROW * len(rows)
        left, right = sorted((place(0.0), place(value)))
        rows.append(
            BarRow(
                shortened(name),
                y,
                left,
                max(right - left, 1.0),
                None if low is None else place(low),
                None if high is None else place(high),
                colour_of(index),
                show(value),
            )
        )
    return Bars(title, unit, TOP + ROW * len(rows) + 4, place(0.0), rows)


def _bounds(value: Estimate | float | None) -> tuple[float, float | None, float | None] | None:
    if value is None:
        return None
    if isinstance(value, Estimate):
        if not math.isfinite(value.value):
            return None
        return value.value, value.low if value.has_interval else None, value.high if value.has_interval else None
    return (value, None, None) if math.isfinite(value) else None


def make_plane(title: str, x_label: str, values: Mapping[str, tuple[Estimate | None, Estimate | None]]) -> Plane | None:
    """Draw models as points with whiskers on both axes; None for fewer than two points that have both."""
    known = {
        name: (index, x, y)
        for index, (name, (x, y)) in enumerate(values.items())
        if x is not None and y is not None and x.has_interval and y.has_interval
    }
    if len(known) < 2:
        return None
    across = _axis([end for _, x, _ in known.values() for end in (x.low, x.high)], PLOT_LEFT, WIDTH - PLOT_RIGHT)
    up = _axis([end for _, _, y in known.values() for end in (y.low, y.high)], PLOT_HEIGHT - PLOT_BOTTOM, PLOT_TOP)
    points = [
        Point(
            shortened(name),
            across.place(x.value),
            up.place(y.value),
            across.place(x.low),
            across.place(x.high),
            up.place(y.low),
            up.place(y.high),
            colour_of(index),
        )
        for name, (index, x, y) in known.items()
    ]
    return Plane(title, x_label, across.ticks(TICKS), up.ticks(TICKS), points)


def make_spread(title: str, values: Mapping[str, Sequence[float]]) -> Spread | None:
    """Make histograms on common bins, as outlines; None where no model has values that differ."""
    everything = np.array([value for one in values.values() for value in one], np.float64)
    if not len(everything) or everything.min() == everything.max():
        return None
    edges = np.linspace(everything.min(), everything.max(), BINS + 1)
    axis = _axis([float(edges[0]), float(edges[-1])], PLOT_LEFT, WIDTH - PLOT_RIGHT, margin=0.0)
    shares = {name: np.histogram(one, edges)[0] / max(1, len(one)) for name, one in values.items()}
    tallest = max(float(share.max()) for share in shares.values()) or 1.0
    floor = PLOT_HEIGHT - PLOT_BOTTOM
    outlines = []
    for index, (name, share) in enumerate(shares.items()):
        corners = [(axis.place(float(edges[0])), floor)]
        for left, right, part in zip(edges[:-1], edges[1:], share, strict=True):
            y = round(floor - float(part) / tallest * (floor - PLOT_TOP), 1)
            corners += [(axis.place(float(left)), y), (axis.place(float(right)), y)]
        corners.append((axis.place(float(edges[-1])), floor))
        outlines.append(Outline(name, colour_of(index), polyline(corners)))
    return Spread(title, axis.ticks(TICKS), outlines)


def _axis(values: Sequence[float], first: float, last: float, margin: float = 0.08) -> Axis:
    low, high = min(values), max(values)
    spread = (high - low) or max(abs(high), 1.0) * 0.1
    return Axis(low - margin * spread, low + spread * (1 + margin), first, last)

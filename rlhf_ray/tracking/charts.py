"""Panels as inline SVG for the report: geometry only, the template writes the markup and escapes the labels."""

import json
import math
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
class Share:
    """One part's share of the run's time."""

    part: str
    colour: str
    seconds: float
    share: float


class _Scale:
    """Steps and values to SVG units."""

    def __init__(self, panel: Panel) -> None:
        steps = [step for line in panel.lines for step in line.steps]
        values = [value for line in panel.lines for value in line.faint or line.values]
        self.log = panel.log_scale
        self.first, self.last = min(steps), max(steps)
        low, high = min(values), max(values)
        if self.log:
            self.low, self.high = math.log10(low), math.log10(high)
        else:
            least = max(abs(low), abs(high)) * 0.02 or 0.1
            spread = max(high - low, least)
            middle = (low + high) / 2
            self.low, self.high = middle - spread * 0.55, middle + spread * 0.55

    def x(self, step: float) -> float:
        return round(LEFT + (step - self.first) / max(self.last - self.first, 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return round(TOP + (self.high - place) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM), 1)

    def x_ticks(self) -> list[Tick]:
        marks = MaxNLocator(5, integer=True).tick_values(self.first, max(self.last, self.first + 1))
        return [Tick(self.x(mark), f"{mark:g}") for mark in marks if self.first <= mark <= self.last]

    def y_ticks(self) -> list[Tick]:
        if self.log:
            powers = range(math.ceil(self.low), math.floor(self.high) + 1)
            every = max(1, len(powers) // 4)
            return [Tick(self.y(10.0**power), f"1e{power}") for power in powers[::every]]
        marks = MaxNLocator(4).tick_values(self.low, self.high)
        shown = [float(mark) for mark in marks if self.low <= mark <= self.high]
        return [Tick(self.y(mark), label) for mark, label in zip(shown, tick_labels(shown), strict=True)]


def make_chart(panel: Panel) -> Chart:
    """Lay out one panel."""
    scale = _Scale(panel)
    curves = [_curve(line, scale) for line in panel.lines]
    read = {"first": scale.first, "last": scale.last, "lines": [_readable(line) for line in panel.lines]}
    return Chart(panel.title, panel.unit, scale.x_ticks(), scale.y_ticks(), curves, json.dumps(read))


def _readable(line: Line) -> dict[str, Any]:
    # What was logged, not what was smoothed, is what a reader of values wants.
    steps, values = shorten(line.steps, line.faint or line.values)
    return {
        "label": line.label,
        "steps": [round(step, 1) for step in steps],
        "values": [float(f"{value:.4g}") for value in values],
    }


def _curve(line: Line, scale: _Scale) -> Curve:
    steps, values = shorten(line.steps, line.values)
    faint = _points(*shorten(line.steps, line.faint), scale) if line.faint is not None else ""
    dotted = line.held_out or len(steps) == 1
    dots = [(scale.x(step), scale.y(value)) for step, value in zip(steps, values, strict=True)] if dotted else []
    last = short_number((line.faint or line.values)[-1])
    return Curve(line.label, line.colour, _points(steps, values, scale), faint, dots, line.held_out, last)


def _points(steps: list[float], values: list[float], scale: _Scale) -> str:
    return " ".join(f"{scale.x(step):g},{scale.y(value):g}" for step, value in zip(steps, values, strict=True))


def shorten(steps: list[int], values: list[float]) -> tuple[list[float], list[float]]:
    """At most MOST_POINTS points, each the mean of a stretch of equal length."""
    if len(steps) <= MOST_POINTS:
        return [float(step) for step in steps], list(values)
    edges = [round(index * len(steps) / MOST_POINTS) for index in range(MOST_POINTS + 1)]
    stretches = list(pairwise(edges))
    return (
        [sum(steps[start:end]) / (end - start) for start, end in stretches],
        [sum(values[start:end]) / (end - start) for start, end in stretches],
    )


def time_shares(times: StepTimes) -> list[Share]:
    """Each part's share of the time of all steps, in the order of a step."""
    totals = times.totals()
    whole = sum(totals.values()) or 1.0
    return [Share(part, part_colour(part), seconds, seconds / whole) for part, seconds in totals.items()]


def time_bars(times: StepTimes, width: float, height: float) -> list[Bar]:
    """Stacked bars of the steps' parts; many steps are averaged so that at most MOST_BARS are drawn."""
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

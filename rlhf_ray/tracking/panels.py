"""Which curves belong on one panel, in which order, for picture and report alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from operator import itemgetter

from rlhf_ray.tracking.history import History, Series
from rlhf_ray.tracking.names import EVALUATION_PREFIX, PANELS, describe
from rlhf_ray.tracking.text import one_line

TIME_PANEL = "Time of a step"
# Of a value: what a curve may move and still be called constant.
ROUNDING = 1e-9
# Colours of one family that colour-blind readers can tell apart, the first for what matters most.
COLOURS = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#0891b2", "#a16207", "#64748b")
# Of a curve's height, about what a line is thick: two curves that are nowhere further apart are drawn as one.
VISIBLE = 0.01
# A logarithmic scale over less than this ratio has no ticks to read.
LOG_SCALE_FROM = 20
# Parts of a step keep their colour everywhere.
PART_COLOURS = {
    "generate": "#2563eb",
    "score": "#0891b2",
    "train": "#ea580c",
    "sync": "#9333ea",
    "evaluate": "#059669",
    "checkpoint": "#a16207",
    "idle": "#cbd5e1",
}
# Names of sources and runs are free text.
LONGEST_LABEL = 60
# A float has no more of them.
MOST_DIGITS = 16
# Below this number of points a smoothed line says no more than the points.
SMOOTH_FROM = 40
# A curve that goes up and down by less than this, against its smoothed self, is drawn as it is.
NOISE_FROM = 1.5
# A curve that turns less often than at this share of its points is no noise, however steep it is.
TURNS_FROM = 0.1
# The smoothed line looks over about this share of the curve.
SMOOTH_SHARE = 0.04


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. `faint` holds the raw values where `values` are smoothed; evaluations are drawn dashed, with dots."""

    name: str
    label: str
    colour: str
    steps: list[int]
    values: list[float]
    faint: list[float] | None
    held_out: bool


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves that share a scale."""

    title: str
    unit: str
    log_scale: bool
    lines: list[Line]


def make_panels(histories: Mapping[str, History]) -> list[Panel]:
    """Make panels of one run, or of several laid over one another, a panel a metric and a colour a run."""
    order = {title: position for position, title in enumerate(PANELS)}
    names = list(dict.fromkeys(name for history in histories.values() for name in history.series))
    by_panel: dict[tuple[int, str], list[str]] = {}
    for name in names:
        metric = describe(name)
        if (
            metric.panel
            and metric.panel != TIME_PANEL
            and any(_points(history, name) for history in histories.values())
        ):
            # Several metrics of several runs on one panel would be a thicket.
            named = len(histories) == 1 or metric.label.lower() in metric.panel.lower()
            title = metric.panel if named else f"{metric.panel}: {metric.label}"
            by_panel.setdefault((order.get(metric.panel, len(order)), title), []).append(name)
    # Sorted by place alone, so that panels of one place stay in the order of logging.
    return [_panel(title, by_panel[place, title], histories) for place, title in sorted(by_panel, key=itemgetter(0))]


def worth_drawing(panels: Sequence[Panel]) -> tuple[list[Panel], list[str]]:
    """Return the panels with something to see, and a few words about each of the others.

    Nothing is to be seen of curves that stay where they began, of those that an earlier panel has too, and of single
    points, unless nothing else has more of them yet.
    """
    kept: list[Panel] = []
    left_out = []
    begun = any(len(line.values) > 1 for panel in panels for line in panel.lines)
    for panel in panels:
        same = next((other.title for other in kept if _repeats(panel, other)), None)
        if same is not None:
            left_out.append(f"{panel.title} as {same}")
        elif begun and all(len(line.values) == 1 for line in panel.lines):
            left_out.append(f"{_first_values(panel)}, measured once")
        elif all(len(line.values) > 1 and _is_constant(line.values) for line in panel.lines):
            left_out.append(f"{_first_values(panel)} at every step")
        else:
            kept.append(panel)
    return kept, left_out


def _repeats(panel: Panel, other: Panel) -> bool:
    return all(any(_lies_on(line, drawn) for drawn in other.lines) for line in panel.lines)


def _lies_on(line: Line, other: Line) -> bool:
    """Tell whether nobody could tell two curves of one scale apart."""
    ours, theirs = line.faint or line.values, other.faint or other.values
    if line.held_out != other.held_out or line.steps != other.steps:
        return False
    visible = VISIBLE * (max(ours) - min(ours))
    return all(abs(value - there) <= visible for value, there in zip(ours, theirs, strict=True))


def _first_values(panel: Panel) -> str:
    values = list(dict.fromkeys(short_number(line.values[0]) for line in panel.lines))
    alike = values if len(values) == 1 else [f"{line.label} {short_number(line.values[0])}" for line in panel.lines]
    return f"{panel.title} {', '.join(alike)}"


def _is_constant(values: Sequence[float]) -> bool:
    return max(values) - min(values) <= ROUNDING * max(map(abs, values))


def _panel(title: str, names: list[str], histories: Mapping[str, History]) -> Panel:
    # A metric and its evaluation share a colour.
    plain = list(dict.fromkeys(name.removeprefix(EVALUATION_PREFIX) for name in names))
    overlay = len(histories) > 1
    lines = []
    for run_index, (run, history) in enumerate(histories.items()):
        for name in names:
            if points := _points(history, name):
                index = run_index if overlay else plain.index(name.removeprefix(EVALUATION_PREFIX))
                lines.append(_line(name, run if overlay else "", COLOURS[index % len(COLOURS)], points))
    if not overlay:
        lines = _merged(lines)
    known = [describe(name) for name in names]
    log_scale = all(metric.log_scale for metric in known) and _spans_decades(lines)
    return Panel(one_line(title, LONGEST_LABEL), known[0].unit, log_scale, lines)


def _merged(lines: Sequence[Line]) -> list[Line]:
    """Merge curves that lie on one another, with all their labels: the last to be drawn would hide the others."""
    merged: list[Line] = []
    for line in lines:
        place = next((place for place, drawn in enumerate(merged) if _lies_on(line, drawn)), None)
        if place is None:
            merged.append(line)
        else:
            merged[place] = replace(merged[place], label=f"{merged[place].label} and {line.label}")
    return merged


def _points(history: History, name: str) -> list[tuple[int, float]]:
    return history.series.get(name, Series()).finite()


def _spans_decades(lines: list[Line]) -> bool:
    values = [value for line in lines for value in line.faint or line.values]
    return min(values) > 0 and max(values) > LOG_SCALE_FROM * min(values)


def _line(name: str, run: str, colour: str, points: list[tuple[int, float]]) -> Line:
    held_out = name.startswith(EVALUATION_PREFIX)
    label = one_line(run or describe(name).label, LONGEST_LABEL) + (", held out" if held_out else "")
    steps, values = [step for step, _ in points], [value for _, value in points]
    even = None if held_out else smoothed(values)
    return Line(name, label, colour, steps, even or values, values if even else None, held_out)


def smooth(values: list[float]) -> list[float]:
    """Average each point's neighbours on both sides, with weights that fall exponentially with the distance.

    Looking both ways, the line does not lag behind its points.
    """
    decay = 1 - 1 / max(1.0, SMOOTH_SHARE * len(values))
    ones = [1.0] * len(values)
    sums = _decayed_sums(values, decay)
    return [total / weight for total, weight in zip(sums, _decayed_sums(ones, decay), strict=True)]


def _decayed_sums(values: list[float], decay: float) -> list[float]:
    def one_way(ordered: list[float]) -> list[float]:
        return list(accumulate(ordered, lambda total, value: decay * total + value))

    both = zip(one_way(values), one_way(values[::-1])[::-1], values, strict=True)
    # Each point is in both sums.
    return [before + after - own for before, after, own in both]


def smoothed(values: list[float]) -> list[float] | None:
    """Return the smoothed curve; None where there are few points, or no noise that it could take away."""
    if len(values) < SMOOTH_FROM or _turns(values) < TURNS_FROM * len(values):
        return None
    even = smooth(values)
    return even if _variation(values) > NOISE_FROM * _variation(even) else None


def _turns(values: list[float]) -> int:
    moves = [after - before for before, after in pairwise(values) if after != before]
    return sum((before > 0) != (after > 0) for before, after in pairwise(moves))


def _variation(values: list[float]) -> float:
    return sum(abs(after - before) for before, after in pairwise(values))


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of each part of each step: `parts[name][i]` belongs to `steps[i]`."""

    steps: list[int]
    parts: dict[str, list[float]]

    def totals(self) -> dict[str, float]:
        """Return the seconds of each part over the run."""
        return {name: sum(values) for name, values in self.parts.items()}


def step_times(history: History) -> StepTimes:
    """Return the parts of each step of a run, unnamed time left out; no steps where none were logged."""
    prefix = "time/"
    # What a driver calls `time/step` is the sum of the others.
    series = {
        one_line(name.removeprefix(prefix), LONGEST_LABEL): item
        for name, item in history.series.items()
        if describe(name).panel == TIME_PANEL and name.startswith(prefix)
    }
    order = [part for part in PART_COLOURS if part in series] + [part for part in series if part not in PART_COLOURS]
    points = {part: dict(series[part].finite()) for part in order}
    steps = sorted({step for part in points.values() for step in part})
    return StepTimes(steps, {part: [points[part].get(step, 0.0) for step in steps] for part in order})


def part_colour(part: str) -> str:
    """Return the colour of a step's part, everywhere the same."""
    return PART_COLOURS.get(part, COLOURS[-1])


def tick_labels(values: Sequence[float]) -> list[str]:
    """Return the labels of an axis, short, but with the digits that tell them apart."""
    labels: list[str] = []
    for more_digits in range(MOST_DIGITS):
        labels = [short_number(value, more_digits) for value in values]
        if len(set(labels)) == len(labels):
            break
    return labels


def short_number(value: float, more_digits: int = 0) -> str:
    """Write a number in few characters: 12.3k, 0.052, 3e-06; in more with `more_digits`, where that says more."""
    if value == 0:
        return "0"
    size = abs(value)
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.{3 + more_digits}g}{letter}"
    return f"{value:.{(4 if size >= 1e-3 else 2) + more_digits}g}"

"""`curves.png`: the metrics of a run on one page."""

import io
import math
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, LogLocator, MaxNLocator, NullFormatter

from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.panels import (
    TIME_PANEL,
    Panel,
    StepTimes,
    make_panels,
    part_colour,
    short_number,
    step_times,
    tick_labels,
    worth_drawing,
)
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.text import one_line

COLUMNS = 4
PANEL_INCHES = (3.7, 2.55)
HEADER_INCHES = 0.55
FOOTER_LINE_INCHES = 0.17
# Of a line under the panels, in an inch; and in all.
FOOTER_CHARACTERS, MOST_FOOTER = 14, 2000
# More steps than this are drawn as areas.
SHOWN_AS_BARS = 60
DOTS_PER_INCH = 110
# Of a panel's width, in characters of the legend, and of its height.
LEGEND_CHARACTERS, HANDLE_CHARACTERS = 52, 6
LEGEND_LINE, LEGEND_MARGIN, MOST_LEGEND = 0.085, 0.03, 0.4
INK, MUTED, GRID = "#0f172a", "#64748b", "#e2e8f0"
# Fonts with Chinese characters, by platform; none of them need be there.
CHINESE_FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "PingFang SC",
    "Heiti SC",
    "Microsoft YaHei",
    "SimHei",
    "Droid Sans Fallback",
)
# In matplotlib's own font, so that it can always be drawn.
UNDRAWABLE = "\u25a1"


def draw_curves(histories: Mapping[str, History], path: Path) -> None:
    """Draw runs (name -> history), laid over one another, and replace `path` whole."""
    times = step_times(next(iter(histories.values()))) if len(histories) == 1 else StepTimes([], {})
    last = max((history.last_step() for history in histories.values()), default=0)
    panels, left_out = worth_drawing(make_panels(histories))
    footer = f"Without a curve: {'; '.join(left_out)}" if left_out else ""
    draw_panels("  |  ".join(histories), f"step {last}", panels, path, times=times, footer=footer)


def draw_panels(
    title: str,
    note: str,
    panels: Sequence[Panel],
    path: Path,
    *,
    columns: int = COLUMNS,
    times: StepTimes | None = None,
    footer: str = "",
) -> None:
    """Draw panels on one page, `columns` side by side, and replace `path` whole.

    Args:
        title: on the left above them.
        note: on the right.
        panels: what to draw.
        path: of the PNG.
        columns: most panels of a row.
        times: parts of the steps, drawn after the others.
        footer: words under them.
    """
    count = len(panels) + (times is not None and bool(times.steps))
    columns = min(columns, max(count, 1))
    rows = max(1, math.ceil(count / columns))
    width = columns * PANEL_INCHES[0]
    lines = textwrap.wrap(_drawable(footer, MOST_FOOTER), int(width * FOOTER_CHARACTERS))
    below = FOOTER_LINE_INCHES * len(lines)
    height = rows * PANEL_INCHES[1] + HEADER_INCHES + below
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    # Fixed margins: matplotlib's own layout engines take seconds for 20 panels.
    figure.subplots_adjust(
        left=0.5 / width,
        right=1 - 0.18 / width,
        top=1 - (HEADER_INCHES + 0.32) / height,
        bottom=(0.35 + below) / height,
        wspace=0.26,
        hspace=0.5,
    )
    _header(figure, title, note, height)
    words: dict[str, Any] = {"fontsize": 8, "color": MUTED, "va": "bottom", "family": _families(), "linespacing": 1.4}
    figure.text(0.18 / width, 0.1 / height, "\n".join(lines), **words)
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel)
    if times is not None and times.steps:
        _draw_times(axes[len(panels)], times)
    for axis in axes[count:]:
        axis.set_axis_off()
    if not count:
        axes[0].text(0.5, 0.5, "nothing logged yet", ha="center", color=MUTED)
    _save(figure, path)


def _header(figure: Figure, title: str, note: str, height: float) -> None:
    top = 1 - 0.3 / height
    left = 0.18 / figure.get_figwidth()
    figure.text(left, top, _drawable(title), fontsize=14, weight="bold", color=INK, family=_families())
    figure.text(1 - left, top, note, fontsize=10, color=MUTED, ha="right")


def _draw_panel(axis: Axes, panel: Panel) -> None:
    _style(axis, panel.title, panel.unit)
    for line in panel.lines:
        if line.faint is not None:
            axis.plot(line.steps, line.faint, color=line.colour, alpha=0.22, linewidth=0.8)
        alone = len(line.steps) == 1 or line.held_out
        axis.plot(
            line.steps,
            line.values,
            color=line.colour,
            linewidth=1.6,
            linestyle=(0, (4, 2)) if line.held_out else "-",
            marker="o" if alone else None,
            markersize=4,
            markerfacecolor="white" if line.held_out else line.colour,
            label=_drawable(line.label, LEGEND_CHARACTERS - HANDLE_CHARACTERS),
        )
    if panel.log_scale:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(numticks=6))
        axis.yaxis.set_minor_formatter(NullFormatter())
    else:
        _leave_room(axis)
    axis.yaxis.set_major_formatter(_ShortNumbers())
    if len(panel.lines) > 1:
        _legend(axis, [line.label for line in panel.lines])


class _ShortNumbers(Formatter):
    """Labels of an axis that no two ticks share."""

    def __call__(self, value: float, _: int | None = None) -> str:
        return short_number(value)

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        return tick_labels(values)


def _draw_times(axis: Axes, times: StepTimes) -> None:
    _style(axis, TIME_PANEL, "seconds")
    colours = [part_colour(part) for part in times.parts]
    values = list(times.parts.values())
    labels = [_drawable(part) for part in times.parts]
    if len(times.steps) > SHOWN_AS_BARS:
        axis.stackplot(times.steps, values, colors=colours, labels=labels, linewidth=0)
    else:
        floor = [0.0] * len(times.steps)
        for label, colour, seconds in zip(labels, colours, values, strict=True):
            axis.bar(times.steps, seconds, bottom=floor, color=colour, label=label, width=0.85)
            floor = [below + more for below, more in zip(floor, seconds, strict=True)]
    axis.set_ylim(0, 1.05 * max(sum(parts) for parts in zip(*values, strict=True)) or 1)
    _legend(axis, labels)


def _style(axis: Axes, title: str, unit: str) -> None:
    axis.set_title(_drawable(title), loc="left", fontsize=9.5, weight="bold", color=INK, pad=6, family=_families())
    if unit:
        axis.set_title(unit, loc="right", fontsize=7.5, color=MUTED, pad=6)
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(which="both", labelsize=7.5, colors=MUTED, length=0)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color("#cbd5e1")


def _leave_room(axis: Axes) -> None:
    low, high = axis.get_ylim()
    # A constant would fill the panel with its rounding errors.
    least = max(abs(low), abs(high)) * 0.02 or 0.1
    if high - low < least:
        middle = (low + high) / 2
        axis.set_ylim(middle - least, middle + least)
    axis.yaxis.set_major_locator(MaxNLocator(5))


def _legend(axis: Axes, labels: Sequence[str]) -> None:
    """Draw the legend above all that is drawn, for which the axis is made higher."""
    columns = max(1, min(len(labels), LEGEND_CHARACTERS // (max(map(_width, labels)) + HANDLE_CHARACTERS)))
    # A legend of very many lines lies over the curves rather than pressing them flat.
    room = min(LEGEND_MARGIN + LEGEND_LINE * math.ceil(len(labels) / columns), MOST_LEGEND)
    transform = axis.yaxis.get_transform()
    low, high = transform.transform(axis.get_ylim())
    axis.set_ylim(top=float(transform.inverted().transform([low + (high - low) / (1 - room)])[0]))
    legend = axis.legend(
        frameon=False,
        handlelength=1.4,
        borderpad=0.2,
        labelspacing=0.25,
        columnspacing=1.2,
        ncols=columns,
        labelcolor=INK,
        loc="upper left",
        prop={"family": _families(), "size": 7},
    )
    legend.set_zorder(5)


def _width(label: str) -> int:
    """Measure a label in characters, of which Chinese ones are wide."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in label)


@cache
def _families() -> list[str]:
    """Name matplotlib's own font, and one with Chinese characters where the machine has one."""
    there = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *[name for name in CHINESE_FONTS if name in there][:1]]


@cache
def _characters() -> frozenset[int]:
    found: set[int] = set()
    for family in _families():
        font = font_manager.get_font(font_manager.findfont(family, fallback_to_default=False))
        found.update(font.get_charmap())
    return frozenset(found)


def _drawable(text: str, most: int = 80) -> str:
    """Return a label as matplotlib draws it without a warning: no formula, unknown character or hidden entry."""
    shown = "".join(letter if ord(letter) in _characters() else UNDRAWABLE for letter in one_line(text, most))
    # A leading underscore hides a legend entry; a dollar sign begins a formula.
    return (" " + shown if shown.startswith("_") else shown).replace("$", r"\$")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DOTS_PER_INCH)
    replace_file(path, drawn.getvalue())

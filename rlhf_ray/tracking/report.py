"""`report.html`: a run on one page that needs no other file and no network."""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template

from rlhf_ray.redaction.texts import redact
from rlhf_ray.tracking.charts import make_chart, time_bars, time_shares
from rlhf_ray.tracking.history import History, Series
from rlhf_ray.tracking.names import describe
from rlhf_ray.tracking.panels import make_panels, short_number, step_times, worth_drawing
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.run_record import RunRecord
from rlhf_ray.tracking.sample_pairs import read_sample_pairs
from rlhf_ray.tracking.text import harmless

TIME_CHART = (1120.0, 150.0)
# The figures at the top of the page: first of these names that was logged, and its title.
HEADLINES = (
    (("eval_reward", "reward", "objective/scores"), "Reward"),
    (("rewards/accuracies", "eval_accuracy", "accuracy"), "Accuracy"),
    (("eval_loss", "loss"), "Loss"),
    (("objective/kl", "kl"), "KL to the reference"),
    (("policy/entropy_avg", "entropy"), "Entropy"),
    (("completions/mean_length",), "Response length"),
    (("step_time",), "Seconds a step"),
    (("tokens_per_second",), "Tokens a second"),
)


@dataclass(frozen=True, slots=True)
class Headline:
    """A figure at the top: what it was at first, empty where that is all there is, and what it is now."""

    title: str
    unit: str
    first: str
    last: str


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A line of the metrics table."""

    name: str
    meaning: str
    unit: str
    figures: list[str]


@dataclass(frozen=True, slots=True)
class SyncCheck:
    """Difference between engines and trainer on the probe texts."""

    syncs: int
    last: str
    largest: str
    tolerance: str
    passed: bool


def write_report(folder: Path, history: History, path: Path) -> None:
    """Write the report of one run folder, replacing `path` whole. Missing files leave their section out."""
    record = RunRecord.read(folder)
    times = step_times(history)
    panels, left_out = worth_drawing(make_panels({folder.name: history}))
    pairs = read_sample_pairs(folder)
    page = html_template("report.html.j2").render(
        title=harmless(folder.name),
        facts=_facts(record, history),
        status=record.status if record else "",
        headlines=_headlines(history),
        charts=[make_chart(panel) for panel in panels],
        left_out="; ".join(left_out),
        shares=time_shares(times),
        bars=time_bars(times, *TIME_CHART),
        time_chart=TIME_CHART,
        time_steps=(times.steps[0], times.steps[-1]) if times.steps else (0, 0),
        sync=_sync_check(history),
        sync_times=_sync_times(history),
        pairs=pairs,
        paired=any(pair.before and pair.after for pair in pairs),
        columns=["first", "last", "lowest", "highest"],
        metrics=[_metric_row(name, series) for name, series in history.series.items()],
        config=_config_text(folder),
        environment=record.environment if record else {},
    )
    replace_file(path, page.encode("utf-8", "replace"))


def write_comparison(histories: Mapping[str, History], path: Path) -> None:
    """Write a page that lays runs (name -> history) over one another, replacing `path` whole."""
    names = list(dict.fromkeys(name for history in histories.values() for name in history.series))
    panels, left_out = worth_drawing(make_panels(histories))
    page = html_template("comparison.html.j2").render(
        title=harmless("  |  ".join(histories)),
        charts=[make_chart(panel) for panel in panels],
        left_out="; ".join(left_out),
        columns=[harmless(run) for run in histories],
        metrics=[_compared_row(name, histories) for name in names],
    )
    replace_file(path, page.encode("utf-8", "replace"))


@cache
def html_template(name: str, package: str = "rlhf_ray.tracking") -> Template:
    """Load a page's template of a package; its frame is that of a run's report."""
    loader = ChoiceLoader([PackageLoader(one, "templates") for one in (package, "rlhf_ray.tracking")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def _facts(record: RunRecord | None, history: History) -> list[tuple[str, str]]:
    last = f"{history.last_step():,}"
    if record is None:
        return [("steps", last)]
    facts = [("run", record.run_id), ("steps", f"{last} of {record.total_steps:,}" if record.total_steps else last)]
    facts.append(("last started", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(record.started))))
    if record.closed is not None:
        facts.append(("which took", duration(record.closed - record.started)))
    if record.peak_memory is not None:
        facts.append(("memory at most", f"{record.peak_memory / 2**30:.1f} GiB"))
    return facts


def duration(seconds: float) -> str:
    """Write a time as people say it: 42 s, 3 min 5 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _headlines(history: History) -> list[Headline]:
    shown = []
    for names, title in HEADLINES:
        points = next((points for name in names if (points := _points(history, name))), None)
        if points is not None:
            name = next(name for name in names if _points(history, name))
            first = short_number(points[0][1]) if len(points) > 1 else ""
            title = f"{title}, held out" if name.startswith("eval_") else title
            shown.append(Headline(title, describe(name).unit, first, short_number(points[-1][1])))
    return shown


def _points(history: History, name: str) -> list[tuple[int, float]]:
    return history.series.get(name, Series()).finite()


def _metric_row(name: str, series: Series) -> MetricRow:
    known = describe(name)
    finite = [value for _, value in series.finite()]
    figures = [_figure(series.values[0]), _figure(series.values[-1])]
    figures += [_figure(min(finite)), _figure(max(finite))] if finite else ["", ""]
    return MetricRow(harmless(name), known.meaning, known.unit, figures)


def _compared_row(name: str, histories: Mapping[str, History]) -> MetricRow:
    known = describe(name)
    last = [history.series[name].values[-1] if name in history.series else None for history in histories.values()]
    return MetricRow(
        harmless(name), known.meaning, known.unit, ["" if value is None else _figure(value) for value in last]
    )


def _figure(value: float) -> str:
    return short_number(value) if math.isfinite(value) else "not a number"


def _sync_check(history: History) -> SyncCheck | None:
    differences = _points(history, "sync/logprob_diff")
    if not differences:
        return None
    tolerances = _points(history, "sync/tolerance")
    largest = max(value for _, value in differences)
    # Each has its own, which follows the logits; after a step that logged none, the one before holds.
    allowed = dict(tolerances)
    last = tolerances[-1][1] if tolerances else math.inf
    return SyncCheck(
        len(differences),
        short_number(differences[-1][1]),
        short_number(largest),
        short_number(tolerances[-1][1]) if tolerances else "",
        all(value <= allowed.get(step, last) for step, value in differences),
    )


def _sync_times(history: History) -> list[tuple[str, str, str]]:
    """List each part of a sync, its meaning, and its mean milliseconds."""
    rows = []
    for part in ("gather", "send", "load", "pause", "verify"):
        seconds = [value for _, value in _points(history, f"sync/{part}")]
        if seconds:
            rows.append((part, describe(f"sync/{part}").meaning, f"{1000 * sum(seconds) / len(seconds):,.1f} ms"))
    return rows


def _config_text(folder: Path) -> str:
    try:
        config: Any = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    return harmless(yaml.safe_dump(redact(config), sort_keys=False, allow_unicode=True))

"""The picture that lays runs with a learned reward over those with the true one, and what they came to."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from examples.online_preferences.run import RESULT_FILE
from examples.online_preferences.settings import RewardKind, Settings
from rlhf_ray.tracking.curves import draw_panels
from rlhf_ray.tracking.history import History, Series
from rlhf_ray.tracking.panels import COLOURS, Line, Panel
from rlhf_ray.tracking.records import replace_file

PICTURE_FILE = "online_preferences.png"
SUMMARY_FILE = "summary.json"

NAMES: dict[RewardKind, str] = {"true": "true reward", "preferences": "learned from comparisons"}


def results(settings: Settings) -> dict[RewardKind, dict[int, dict[str, float]]]:
    """Read what finished runs came to, by kind and seed."""
    found: dict[RewardKind, dict[int, dict[str, float]]] = {}
    for kind in NAMES:
        for seed in settings.seeds:
            file = Path(settings.one(kind, seed).output) / RESULT_FILE
            if file.exists():
                found.setdefault(kind, {})[seed] = json.loads(file.read_text(encoding="utf-8"))
    return found


def share(true: dict[str, float], learned: dict[str, float]) -> float | None:
    """Return the share of what the true reward teaches that comparisons taught; None where it taught nothing.

    Counted from the untrained policy, because returns may be negative: 0 is what it gets, 1 what the run with the true
    reward came to.
    """
    if true["after"] <= true["before"]:
        return None
    return (learned["after"] - true["before"]) / (true["after"] - true["before"])


def report_lines(settings: Settings) -> list[str]:
    """Write a line for each seed whose runs are finished, and one for all."""
    found = results(settings)
    lines, shares = [], []
    for seed in settings.seeds:
        kinds = {kind: runs[seed] for kind, runs in found.items() if seed in runs}
        said = [f"{NAMES[kind]} {result['after']:.1f}" for kind, result in kinds.items()]
        if len(kinds) == len(NAMES):
            true, learned = kinds["true"], kinds["preferences"]
            part = share(true, learned)
            if part is None:
                said.append("the true reward taught nothing that this could be a share of")
            else:
                shares.append(part)
                said.append(f"{part:.1%} of it by {learned['comparisons']:.0f} comparisons")
        if said:
            before = next(iter(kinds.values()))["before"]
            lines.append(f"seed {seed}: return before {before:.1f}; " + ", ".join(said))
    if shares:
        lines.append(f"{len(shares)} seeds: {fmean(shares):.1%} on average, {min(shares):.1%} at least")
    return lines


def write_report(settings: Settings) -> None:
    """Draw the picture and write the figures of what is there."""
    output = Path(settings.output)
    summary = {"task": settings.task, "runs": results(settings), "lines": report_lines(settings)}
    replace_file(output / SUMMARY_FILE, (json.dumps(summary, indent=2) + "\n").encode())
    histories = {
        kind: {seed: History.read(Path(settings.one(kind, seed).output)).series for seed in settings.seeds}
        for kind in NAMES
    }
    panels = [_panel(f"Seed {seed}: return", "eval_reward", histories, [seed]) for seed in settings.seeds]
    if len(settings.seeds) > 1:
        panels.append(_panel("Mean of the seeds: return", "eval_reward", histories, settings.seeds))
    panels.append(_panel("Predicted and true reward: correlation", "predictor/correlation", histories, settings.seeds))
    panels.append(_panel("Comparisons", "comparisons", histories, settings.seeds))
    lines = report_lines(settings)
    title = f"Online preferences: {settings.task}"
    draw_panels(
        title, lines[-1] if lines else "", [one for one in panels if one.lines], output / PICTURE_FILE, columns=3
    )


def _panel(
    title: str, metric: str, histories: dict[RewardKind, dict[int, dict[str, Series]]], seeds: Sequence[int]
) -> Panel:
    lines = []
    for (kind, runs), colour in zip(histories.items(), COLOURS, strict=False):
        known = [dict(runs[seed][metric].finite()) for seed in seeds if metric in runs[seed]]
        steps = sorted(set.intersection(*map(set, known))) if known else []
        if steps:
            values = [fmean(one[step] for one in known) for step in steps]
            lines.append(Line(metric, NAMES[kind], colour, steps, values, None, held_out=False))
    return Panel(title, "", False, lines)

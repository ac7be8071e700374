"""What the rounds came to: a table, a file, curves over rounds."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from rlhf_ray.pipelines.round_stages import PRESENT_MODEL, Round
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.panels import short_number
from rlhf_ray.tracking.pictures import draw
from rlhf_ray.tracking.records import METRICS_FILE, read_records, replace_file

ROUNDS_FILE = "rounds.json"

FIGURES = {
    "reward": "eval_reward",
    "oracle": "eval_rewards/oracle/mean",
    "kl": "eval_objective/kl",
    "length": "eval_completions/mean_length",
    "distinct_2": "eval_completions/distinct_2",
    "perplexity": "eval_perplexity",
    "tax": "eval_alignment_tax",
}
"""Figures of a comparison, and the metrics as which they are drawn."""

Figures = dict[str, Any]


def figures_of(now: Round) -> Figures:
    """Collect a round's figures: its labels, its reward model, and its policy against the first model."""
    summary = json.loads((now.evaluation / "summary.json").read_text(encoding="utf-8"))
    policy = summary["models"][PRESENT_MODEL]
    lines = {name: path.read_bytes().count(b"\n") for name, path in (("new", now.labels), ("used", now.preferences))}
    found: Figures = {"round": now.number, "rankings": lines["new"], "rankings_used": lines["used"]}
    accuracy = [
        row["eval_accuracy"] for row in read_records(now.folder / "reward" / METRICS_FILE) if "eval_accuracy" in row
    ]
    if accuracy:
        found["reward_accuracy"] = accuracy[-1]
    for name in FIGURES:
        value = policy[name]
        if isinstance(value, dict):
            value = value["value"]
        if value is not None:
            found[name] = value
    for judge, rates in summary["win_rates"].items():
        found[f"win_rate/{judge}"] = rates[PRESENT_MODEL]["outcome"]["rate"]["value"]
    return found


def write_rounds(folder: Path, rounds: Sequence[Figures]) -> None:
    """Write `rounds.json`, and draw `curves.png` and `report.html` over the rounds."""
    replace_file(folder / ROUNDS_FILE, (json.dumps(list(rounds), indent=2) + "\n").encode())
    history = History()
    rows = []
    for figures in rounds:
        metrics = {
            FIGURES.get(name, f"eval_{name}"): math.nan if value is None else float(value)
            for name, value in figures.items()
            if name != "round"
        }
        history.add(figures["round"], metrics)
        rows.append({"step": figures["round"], **metrics})
    content = "".join(json.dumps(row) + "\n" for row in rows)
    replace_file(folder / METRICS_FILE, content.encode())
    draw(folder, history)


def round_table(rounds: Sequence[Figures]) -> Table:
    """Make a table of the figures, a row a round."""
    names = list(dict.fromkeys(name for figures in rounds for name in figures))
    table = Table(title="Rounds: the policy against the first model", title_justify="left")
    for name in names:
        table.add_column(name, justify="right")
    for figures in rounds:
        values = [figures.get(name) for name in names]
        table.add_row(*("" if value is None else short_number(value) for value in values))
    return table

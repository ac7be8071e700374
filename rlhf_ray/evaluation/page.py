"""`comparison.html`: models side by side on one page that needs no other file and no network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.table import Table

from rlhf_ray.config.rewards import TOTAL_COLUMN
from rlhf_ray.evaluation.answers import ModelResult
from rlhf_ray.evaluation.figures import colour_of, make_bars, make_plane, make_spread
from rlhf_ray.evaluation.measures import cells, headlines, measured, shown
from rlhf_ray.evaluation.statistics import NO_INTERVAL, is_known
from rlhf_ray.evaluation.summary import Summary
from rlhf_ray.redaction.texts import redact
from rlhf_ray.tracking.panels import short_number
from rlhf_ray.tracking.records import replace_file
from rlhf_ray.tracking.report import html_template
from rlhf_ray.tracking.sample_pairs import cut, prompt_text
from rlhf_ray.tracking.text import harmless, one_line

PAGE_FILE = "comparison.html"
MOST_PROMPTS = 12
"""Prompts whose answers are shown; all answers stay in their files."""
MOST_VERDICTS = 12
SHORTEST_LABEL = 80


@dataclass(frozen=True, slots=True)
class ShownVerdict:
    """A judge's words about one pair."""

    judge: str
    model: str
    prompt: Any
    """Text or messages."""
    winner: str
    reason: str


def title_of(summary: Summary) -> str:
    """Return a line that says what is compared."""
    others = [name for name in summary.models if name != summary.baseline]
    if not others:
        return summary.baseline
    *most, last = others
    return f"{', '.join(most)}{' and ' if most else ''}{last} against {summary.baseline}"


def summary_table(summary: Summary) -> Table:
    """Make a table of the figures for a terminal."""
    table = Table(title="Models side by side", title_justify="left")
    table.add_column("")
    for name in summary.models:
        table.add_column(name, justify="right")
    for one in measured(summary):
        table.add_row(one.title, *(value for value, _ in cells(one, summary)))
    for judge, rates in summary.win_rates.items():
        won = ["" if name not in rates else f"{rates[name].outcome.rate.value:.3f}" for name in summary.models]
        table.add_row(f"wins against {summary.baseline}: {judge}", *won)
    return table


def write_page(
    path: Path,
    title: str,
    summary: Summary,
    results: Sequence[ModelResult],
    verdicts: Sequence[ShownVerdict],
    config: Mapping[str, Any],
) -> None:
    """Write the page, replacing `path` whole. Text of models, people and services is shown as text, whatever it is."""
    colours = {name: colour_of(index) for index, name in enumerate(summary.models)}
    page = html_template("evaluation.html.j2", "rlhf_ray.evaluation").render(
        title=harmless(title),
        baseline=summary.baseline,
        reference=summary.reference,
        answers=max(figures.answers for figures in summary.models.values()),
        prompts=len(set(results[0].prompts)),
        models=[(name, colours[name], harmless(figures.path)) for name, figures in summary.models.items()],
        table=[(one.title, one.better, one.meaning, cells(one, summary)) for one in measured(summary)],
        sources=_sources(summary),
        headlines=headlines(summary, colours),
        legend_names=list(colours.items()),
        bars=_bars(summary),
        planes=_planes(summary),
        spreads=_spreads(results),
        win_rates=_win_rates(summary, colours),
        no_interval=NO_INTERVAL,
        samples=_samples(results, colours),
        verdicts=[_verdict(one, summary.baseline) for one in _chosen(verdicts)],
        config=harmless(yaml.safe_dump(redact(dict(config)), sort_keys=False, allow_unicode=True)),
    )
    replace_file(path, page.encode("utf-8", "replace"))


def _sources(summary: Summary) -> list[tuple[str, list[str]]]:
    names = list(dict.fromkeys(name for figures in summary.models.values() for name in figures.sources))
    if len(names) < 2:
        return []
    return [
        (one_line(name, SHORTEST_LABEL), [str(figures.sources[name]) for figures in summary.models.values()])
        for name in names
    ]


def _bars(summary: Summary) -> list[Any]:
    found = [
        make_bars(one.title, one.bars, values, shown(one, list(values.values())))
        for one in measured(summary)
        if one.bars is not None
        for values in [{name: one.of(figures) for name, figures in summary.models.items()}]
    ]
    return [bars for bars in found if bars is not None]


def _planes(summary: Summary) -> list[Any]:
    models = summary.models.items()
    found = [
        make_plane("Reward against KL", "KL, nats", {name: (one.kl, one.reward) for name, one in models}),
        make_plane("Oracle against KL", "KL, nats", {name: (one.kl, one.oracle) for name, one in models}),
    ]
    return [plane for plane in found if plane is not None]


def _spreads(results: Sequence[ModelResult]) -> list[Any]:
    found = []
    for source, title in ((TOTAL_COLUMN, "Rewards of the answers"), ("oracle", "The oracle's judgements")):
        if all(source in result.scores for result in results):
            known = {result.name: [one for one in result.scores[source] if is_known(one)] for result in results}
            found.append(make_spread(title, known))
    return [spread for spread in found if spread is not None]


def _win_rates(summary: Summary, colours: Mapping[str, str]) -> list[dict[str, Any]]:
    rows = []
    for judge, rates in summary.win_rates.items():
        for name, found in rates.items():
            outcome = found.outcome
            count = max(1, outcome.wins + outcome.ties + outcome.losses)
            rows.append(
                {
                    "judge": judge,
                    "model": name,
                    "colour": colours[name],
                    "shares": [outcome.wins / count, outcome.ties / count, outcome.losses / count],
                    "counts": [outcome.wins, outcome.ties, outcome.losses],
                    "rate": outcome.rate if outcome.rate.count else None,
                    "failed": found.failed,
                }
            )
    return rows


def _samples(results: Sequence[ModelResult], colours: Mapping[str, str]) -> list[dict[str, Any]]:
    """Choose the first answers of all models to prompts that are spread over the data set."""
    firsts = [row for row, answer in enumerate(results[0].answers) if answer.index == 0]
    stride = max(1, math.ceil(len(firsts) / MOST_PROMPTS))
    shown = []
    for row in firsts[::stride]:
        answers = [
            {
                "name": result.name,
                "colour": colours[result.name],
                "text": cut(result.answers[row].completion),
                "facts": _facts(result, row),
            }
            for result in results
        ]
        shown.append({"prompt": prompt_text(results[0].answers[row].prompt), "answers": answers})
    return shown


def _facts(result: ModelResult, row: int) -> list[tuple[str, str]]:
    facts = [
        (one_line(source, SHORTEST_LABEL), short_number(value))
        for source, scores in result.scores.items()
        if is_known(value := scores[row])
    ]
    facts.append(("tokens", str(result.lengths[row])))
    return facts


def _chosen(verdicts: Sequence[ShownVerdict]) -> Sequence[ShownVerdict]:
    told = [verdict for verdict in verdicts if verdict.reason.strip()]
    return told[:: max(1, math.ceil(len(told) / MOST_VERDICTS))]


def _verdict(one: ShownVerdict, baseline: str) -> dict[str, str]:
    winners = {"candidate": one.model, "baseline": baseline, "tie": "tie", "none": "no verdict"}
    return {
        "judge": one.judge,
        "models": f"{one.model} against {baseline}",
        "prompt": prompt_text(one.prompt),
        "winner": winners[one.winner],
        "reason": cut(one.reason),
    }

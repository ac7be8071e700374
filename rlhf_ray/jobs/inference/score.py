"""`rlhf score`: scores of prompts with their completions by reward sources."""

import math
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from rlhf_ray.cluster.connect import connect
from rlhf_ray.config.jobs.inference import ScoreConfig
from rlhf_ray.config.rewards import TOTAL_COLUMN, ModelReward
from rlhf_ray.data.columns import AnsweredPrompt, as_given
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.loading import read_answered
from rlhf_ray.data.row_files import set_apart
from rlhf_ray.jobs.inference.rows import RowProgress, row_output
from rlhf_ray.models.score_statistics import units_of
from rlhf_ray.roles.scorer import PendingRewards, RewardSources
from rlhf_ray.runs.model_checks import check_reward_sources
from rlhf_ray.runs.recovery import RESTARTS
from rlhf_ray.tracking.terminal import say

TOKENS_PER_MICROBATCH = 8192
"""Of one forward pass of a reward model, padding counted."""

NARROWEST = 100
"""Columns that the table needs; narrower terminals and pipes wrap lines instead of cutting numbers."""

BATCHES_AHEAD = 2
"""Batches that wait at the sources while one is written."""

Scored = dict[str, list[float | None]]
"""By source, and the total: None where it does not apply, NaN where it failed."""


def run(config: ScoreConfig) -> None:
    """Write every row with a column for each source and their weighted sum; the file appears when all are there.

    A score that failed is null and counted, and so is the sum of its row.

    Raises:
        TooManyFailures: a source failed for more rows than its `failed_scores` allows; no file is written.
        RlhfError: with what is wrong and what to do.
    """
    check_reward_sources(config)
    answers = read_answered(config.data)
    names = list(dict.fromkeys([*(source.name for source in config.rewards), TOTAL_COLUMN]))
    known = [_known(answer, names) for answer in answers.rows]
    found: Scored = {name: [] for name in names}
    with row_output(config.output, known, dict.fromkeys(names, float)) as file:
        with (
            connect(config.cluster, config.groups, say, config.environment) as cluster,
            RowProgress("scoring", len(known)) as progress,
        ):
            models = (source for source in config.rewards if isinstance(source, ModelReward))
            for line in (*answers.report.lines(), *map(units_of, models)):
                progress.message(line)
            sources = RewardSources(cluster, config.rewards, TOKENS_PER_MICROBATCH, max_restarts=RESTARTS)
            sources.ready()
            rows = iter(known)
            for scores in _scored(sources, answers.rows, config.batch_size):
                count = len(scores[TOTAL_COLUMN])
                for place in range(count):
                    file.write(next(rows) | {name: _finite(scores[name][place]) for name in names})
                for name in names:
                    found[name] += scores[name]
                progress.advance(count)
        for tally in sources.tallies.values():
            tally.check_all()
    console = Console(width=max(Console().width, NARROWEST))
    for tally in sources.tallies.values():
        for kind, message in tally.reasons.items():
            console.print(f"  {kind}: {message}", highlight=False, markup=False, soft_wrap=True)
    console.print(summary(config, found))
    console.print(f"{len(known)} rows in {config.output}", highlight=False, markup=False, soft_wrap=True)


def _known(answer: AnsweredPrompt, names: Sequence[str]) -> Row:
    given = {"prompt": answer.prompt, "completion": as_given(answer.prompt, answer.completion)}
    return given | set_apart(answer.columns, [*given, *names])


def _scored(sources: RewardSources, rows: Sequence[AnsweredPrompt], batch_size: int) -> Iterator[Scored]:
    """Yield the scores of batches of rows in their order; later batches are on their way meanwhile."""
    waiting: deque[PendingRewards] = deque()
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        waiting.append(sources.submit_answers(batch, [_length(answer) for answer in batch]))
        if len(waiting) > BATCHES_AHEAD:
            yield _with_total(sources, waiting.popleft())
    while waiting:
        yield _with_total(sources, waiting.popleft())


def _with_total(sources: RewardSources, pending: PendingRewards) -> Scored:
    scores = pending.result()
    return scores | {TOTAL_COLUMN: list(sources.combine(scores))}


def _length(answer: AnsweredPrompt) -> int:
    prompt = answer.prompt
    turns = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    return sum(map(len, turns)) + len(answer.completion)


def _finite(score: float | None) -> float | None:
    return None if score is None or math.isnan(score) else score


def summary(config: ScoreConfig, found: Scored) -> Table:
    """Return mean, spread and range of each column, and how many rows have no score, by reason."""
    table = Table(title="Scores", title_justify="left")
    for name in ("source", "weight", "scored", "does not apply", "failed", "mean", "std", "min", "max"):
        table.add_column(name, justify="left" if name == "source" else "right")
    weights = {source.name: f"{source.weight:g}" for source in config.rewards}
    for name, values in found.items():
        # Of the sum, NaN also says that no source applies.
        absent = sum(value is None for value in values)
        scores = np.array([value for value in values if _finite(value) is not None], np.float64)
        counts = [len(scores), absent, len(values) - absent - len(scores)]
        numbers = [scores.mean(), scores.std(), scores.min(), scores.max()] if len(scores) else []
        table.add_row(name, weights.get(name, ""), *map(str, counts), *(f"{number:.4f}" for number in numbers))
    return table

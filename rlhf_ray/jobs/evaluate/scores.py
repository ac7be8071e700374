"""What reward sources and the oracle say of the answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.rewards import ORACLE, TOTAL_COLUMN, RewardConfig
from rlhf_ray.data.columns import AnsweredPrompt
from rlhf_ray.data.records import PromptRecord
from rlhf_ray.evaluation.answers import Answer
from rlhf_ray.evaluation.row_log import RowLogs, key_of
from rlhf_ray.jobs.evaluate.answers import StartCluster
from rlhf_ray.jobs.inference.rows import RowProgress
from rlhf_ray.roles.scorer import RewardSources
from rlhf_ray.runs.recovery import RESTARTS
from rlhf_ray.scoring.kinds import kind_of
from rlhf_ray.scoring.source import combine

ROWS_AT_ONCE = 64
"""Answers sent to the sources at a time; so many are scored again after a kill."""

SourceScores = dict[str, list[float | None]]
"""By source, `oracle` and the weighted sum among them; None where it does not apply or failed."""


def sources_of(config: EvaluateConfig) -> list[RewardConfig]:
    """List the reward sources, and the oracle as one of them."""
    oracle = [] if config.oracle is None else [config.oracle.model_copy(update={"name": ORACLE, "weight": 0.0})]
    return [*config.rewards, *oracle]


def score_all(
    config: EvaluateConfig,
    logs: RowLogs,
    answers: Mapping[str, Sequence[Answer]],
    columns: Mapping[str, Mapping[str, PromptRecord]],
    keys: Mapping[str, str],
    start_cluster: StartCluster,
    say: Callable[[str], None],
) -> dict[str, SourceScores]:
    """Score what has no scores yet, by all sources at once.

    Args:
        config: of the job.
        logs: the row files.
        answers: by model.
        columns: by model, the prompts by id, whose further columns reward functions see.
        keys: by model, of its answers.
        start_cluster: where the sources run.
        say: takes words for the person who watches.

    Raises:
        TooManyFailures: a source failed for more answers than its `failed_scores` allows.
    """
    sources = sources_of(config)
    if not sources:
        return {name: {} for name in answers}
    judged_by = [_identity(source) for source in sources]
    missing: dict[str, list[Answer]] = {}
    for name, given in answers.items():
        file = f"scores/{name}"
        if logs.prepare(file, key_of(keys[name], judged_by)):
            say(f"scores of {name}: answers or reward sources have changed; scoring anew")
        known = {(row["prompt_id"], row["index"]) for row in logs.read(file)}
        missing[name] = [answer for answer in given if (answer.prompt_id, answer.index) not in known]
    if any(missing.values()):
        _score(config, logs, sources, missing, columns, start_cluster)
    return {name: _with_total(config, logs, name, answers[name], sources) for name in answers}


def _score(
    config: EvaluateConfig,
    logs: RowLogs,
    sources: Sequence[RewardConfig],
    missing: Mapping[str, Sequence[Answer]],
    columns: Mapping[str, Mapping[str, PromptRecord]],
    start_cluster: StartCluster,
) -> None:
    with (
        start_cluster() as cluster,
        RowProgress("scoring", sum(map(len, missing.values()))) as progress,
    ):
        scorers = RewardSources(cluster, sources, config.tokens_per_microbatch, max_restarts=RESTARTS)
        scorers.ready()
        for name, answers in missing.items():
            rows = logs.open(f"scores/{name}")
            for start in range(0, len(answers), ROWS_AT_ONCE):
                batch = answers[start : start + ROWS_AT_ONCE]
                asked = [
                    AnsweredPrompt(one.prompt, one.completion, columns[name][one.prompt_id].columns) for one in batch
                ]
                found = scorers.submit_answers(asked, [len(one.response_ids) for one in batch]).result()
                for place, one in enumerate(batch):
                    scores = {source: values[place] for source, values in found.items()}
                    failed = [source for source, value in scores.items() if value is not None and math.isnan(value)]
                    rows.append({"prompt_id": one.prompt_id, "index": one.index, "scores": scores, "failed": failed})
                progress.advance(len(batch))
            rows.close()
        for tally in scorers.tallies.values():
            tally.check_all()


def _with_total(
    config: EvaluateConfig, logs: RowLogs, name: str, answers: Sequence[Answer], sources: Sequence[RewardConfig]
) -> SourceScores:
    # On file both a failure and a source that does not apply are null; the sum of a row with a failure is unknown.
    rows = {
        (row["prompt_id"], row["index"]): row["scores"] | dict.fromkeys(row["failed"], math.nan)
        for row in logs.read(f"scores/{name}")
    }
    found: SourceScores = {
        source.name: [rows[answer.prompt_id, answer.index].get(source.name) for answer in answers] for source in sources
    }
    if config.rewards:
        weights = {source.name: source.weight for source in config.rewards}
        found[TOTAL_COLUMN] = list(combine({source: found[source] for source in weights}, weights))
    return found


def _identity(source: RewardConfig) -> list[Any]:
    """Identify a source by its settings, and by the file or models behind it."""
    settings = source.model_dump(mode="json", exclude={*PlacementConfig.model_fields, "weight", "failed_scores"})
    return [settings, *kind_of(source).identity(source)]

"""What the judges say of each model against the baseline."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.judges import PeopleJudge, RewardJudge, ServiceJudge
from rlhf_ray.config.rewards import TOTAL_COLUMN
from rlhf_ray.data.messages import words_of
from rlhf_ray.data.records import Prompt
from rlhf_ray.evaluation.answers import ModelResult
from rlhf_ray.evaluation.page import ShownVerdict
from rlhf_ray.evaluation.row_log import RowLogs, key_of
from rlhf_ray.evaluation.service_judge import Opinion, Pair, ServiceJudging, check_failures
from rlhf_ray.evaluation.verdicts import Judgement, Verdict, by_scores, check_people, judged, read_people
from rlhf_ray.jobs.inference.rows import RowProgress

WinRates = dict[str, dict[str, Judgement]]
"""By judge and model."""


def check_judges(config: EvaluateConfig) -> None:
    """Check tokens of services and files of people before anything starts.

    Raises:
        BadInput: one cannot be used.
    """
    for judge in config.judges:
        if isinstance(judge, ServiceJudge):
            ServiceJudging(judge)
        elif isinstance(judge, PeopleJudge):
            check_people(Path(judge.path).expanduser(), config.models)


def judge_all(
    config: EvaluateConfig,
    logs: RowLogs,
    results: Sequence[ModelResult],
    baseline: str,
    keys: Mapping[str, str],
    say: Callable[[str], None],
) -> tuple[WinRates, list[ShownVerdict]]:
    """Let all judges compare all models to the baseline; return win rates, and verdicts with words to show.

    Raises:
        JudgeFailed: a service gave no verdicts. BadInput: a file of people's verdicts is not one.
    """
    base = next(result for result in results if result.name == baseline)
    rates: WinRates = {judge.name: {} for judge in config.judges}
    shown: list[ShownVerdict] = []
    for judge in config.judges:
        for result in results:
            if result is base:
                continue
            if isinstance(judge, RewardJudge):
                found = judged(*by_scores(result, base, judge.source or TOTAL_COLUMN, judge.tie_margin))
                words: list[ShownVerdict] = []
            elif isinstance(judge, PeopleJudge):
                found, words = _of_people(judge, result.name, baseline)
            else:
                key = key_of(keys[result.name], keys[baseline])
                found, words = _of_service(judge, result.name, _asked(judge, logs, result, base, key, say))
            rates[judge.name][result.name] = found
            shown += words
    return rates, shown


def _of_people(judge: PeopleJudge, name: str, baseline: str) -> tuple[Judgement, list[ShownVerdict]]:
    verdicts = read_people(Path(judge.path).expanduser(), name, baseline)
    words = [ShownVerdict(judge.name, name, json.loads(one.prompt), one.winner, one.reason) for one in verdicts]
    return judged(verdicts), words


def _of_service(judge: ServiceJudge, name: str, opinions: Sequence[Opinion]) -> tuple[Judgement, list[ShownVerdict]]:
    verdicts = [Verdict(one.pair.key[0], one.winner) for one in opinions if one.winner is not None]
    silent = [one.reason for one in opinions if one.winner is None]
    check_failures(judge, len(silent), len(opinions), silent[0] if silent else "")
    words = [ShownVerdict(judge.name, name, one.pair.prompt, one.winner or "none", one.reason) for one in opinions]
    return judged(verdicts, len(silent)), words


def _asked(
    judge: ServiceJudge, logs: RowLogs, result: ModelResult, base: ModelResult, key: str, say: Callable[[str], None]
) -> list[Opinion]:
    """Ask for opinions on all pairs; those on file are not asked for again, but for pairs that have no verdict."""
    file = f"verdicts/{judge.name}.{result.name}"
    logs.prepare(file, key_of(key, judge.url, judge.model, judge.instruction, judge.max_new_tokens))
    pairs = {
        (mine.prompt_id, mine.index): Pair(
            (mine.prompt_id, mine.index), prompt_words(mine.prompt), mine.completion, theirs.completion
        )
        for mine, theirs in zip(result.answers, base.answers, strict=True)
    }
    known: dict[tuple[str, int], Opinion] = {}
    for row in logs.read(file):
        pair = pairs[row["prompt_id"], row["index"]]
        known[pair.key] = Opinion(pair, row["winner"], row["consistent"], row["reason"])
    missing = [pair for key, pair in pairs.items() if key not in known or known[key].winner is None]
    if missing:
        say(f"judge {judge.name}: {result.name} against {base.name}, {len(missing)} pairs, each in both orders")
        rows = logs.open(file)
        with RowProgress("judging", len(missing)) as progress:
            for opinion in ServiceJudging(judge).opinions(missing):
                known[opinion.pair.key] = opinion
                rows.append(_row(opinion))
                progress.advance(1)
        rows.close()
    return [known[key] for key in pairs]


def _row(opinion: Opinion) -> dict[str, object]:
    prompt_id, index = opinion.pair.key
    return {
        "prompt_id": prompt_id,
        "index": index,
        "winner": opinion.winner,
        "consistent": opinion.consistent,
        "reason": opinion.reason,
    }


def prompt_words(prompt: Prompt) -> str:
    """Write a prompt as a judge reads it: messages with their roles."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {words_of(message)}" for message in prompt)

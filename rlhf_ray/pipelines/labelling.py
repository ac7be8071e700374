"""Prompts of a round, and the rankings of its answers."""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rlhf_ray.config.data import DataConfig
from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.iterate import IterateConfig, PeopleLabels, SourceLabels
from rlhf_ray.config.rewards import TOTAL_COLUMN, RewardConfig
from rlhf_ray.data.columns import prompt_of, ranking_of
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.loading import converted_rows, report_of
from rlhf_ray.data.row_files import json_line
from rlhf_ray.pipelines.round_stages import Round, policy_before
from rlhf_ray.tracking.records import replace_file


class WaitingForPeople(RlhfError):
    """A round's answers are there and their labels are not; nothing is wrong."""

    exit_code = 3


def all_prompts(config: IterateConfig) -> list[Row]:
    """Read the rows of all prompts.

    Raises:
        BadInput: they cannot be read, or there are fewer than a round asks for.
    """

    def convert(_: int, row: Row) -> Row:
        prompt, columns = prompt_of(row)
        return {"prompt": prompt, **columns}

    data = DataConfig(**config.prompts.model_dump())
    rows = converted_rows(data, report_of(data), convert)
    if len(rows) < config.prompts_per_round:
        raise BadInput(
            f"prompts_per_round: {config.prompts_per_round} are asked for, but {config.prompts.path} has {len(rows)}"
        )
    return rows


def choose_prompts(rows: Sequence[Row], count: int, number: int, seed: int) -> list[Row]:
    """Choose the prompts of a round: all in a random order, then in another, dealt out round after round."""
    first = number * count
    chosen: list[Row] = []
    for position in range(first, first + count):
        turn, place = divmod(position, len(rows))
        order = list(range(len(rows)))
        random.Random(f"{seed} {turn}").shuffle(order)
        chosen.append(rows[order[place]])
    return chosen


def write_prompts(config: IterateConfig, now: Round) -> None:
    """Write the prompts of a round."""
    _write(now.prompts, choose_prompts(all_prompts(config), config.prompts_per_round, now.number, config.seed))


def write_score_config(rewards: Sequence[RewardConfig], now: Round) -> Path:
    """Write the config of `rlhf score` that labels a round."""
    sources = [source.model_dump(mode="json") for source in rewards]
    settings = {"output": str(now.scored), "data": {"path": str(now.answers), "shuffle": False}, "rewards": sources}
    path = now.folder / "score.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def write_rankings(config: IterateConfig, labels: SourceLabels | PeopleLabels, now: Round) -> None:
    """Write the rankings of a round.

    Raises:
        WaitingForPeople: people have not labelled it yet.
        BadInput: their file is not one of rankings, or no answers of a prompt differ.
    """
    if isinstance(labels, SourceLabels):
        rows = rank_by_scores(_read(now.scored), labels.tie_margin)
        if not rows:
            raise BadInput(
                f"{now.scored}: no answers to one prompt have different scores, so there is nothing to learn"
            )
    else:
        file = people_file(labels, now)
        if not file.exists():
            raise WaitingForPeople(_how_to_label(config, file, now))
        data = DataConfig(path=str(file), shuffle=False)
        found = converted_rows(data, report_of(data), lambda _, row: ranking_of(row))
        rows = [{"prompt": one.prompt, "responses": list(one.responses), "ranks": list(one.ranks)} for one in found]
    _write(now.labels, rows)


def rank_by_scores(rows: Iterable[Mapping[str, Any]], tie_margin: float) -> list[Row]:
    """Rank scored answers to the same prompt; answers without a score, and repeated ones, are left out.

    Ranks are those of the sorted scores; an answer within `tie_margin` of the best of its rank shares that rank.
    Prompts whose answers all have one rank say nothing and are left out.
    """
    groups: dict[str, dict[str, float]] = {}
    prompts: dict[str, Any] = {}
    for row in rows:
        score = row[TOTAL_COLUMN]
        if score is not None:
            key = json.dumps(row["prompt"], sort_keys=True)
            completion = row["completion"]
            text = completion if isinstance(completion, str) else completion[0]["content"]
            groups.setdefault(key, {}).setdefault(text, score)
            prompts[key] = row["prompt"]
    found = []
    for key, scores in groups.items():
        ordered = sorted(scores.items(), key=lambda pair: -pair[1])
        ranks: list[int] = []
        best = 0.0
        for _, score in ordered:
            if not ranks or best - score > tie_margin:
                best = score
                ranks.append(ranks[-1] + 1 if ranks else 0)
            else:
                ranks.append(ranks[-1])
        if len(set(ranks)) > 1:
            found.append({"prompt": prompts[key], "responses": [text for text, _ in ordered], "ranks": ranks})
    return found


def write_preferences(config: IterateConfig, now: Round) -> None:
    """Write what the reward model of a round learns from: its rankings, after those of earlier rounds if they count."""
    numbers = range(now.number + 1) if config.keep_preferences else [now.number]
    _write(now.preferences, [row for number in numbers for row in _read(Round.of(config, number).labels)])


def people_file(labels: PeopleLabels, now: Round) -> Path:
    """Return the file in which people's rankings of a round are looked for."""
    if labels.path is None:
        return now.folder / "labels.jsonl"
    return Path(labels.path.replace("{round}", f"{now.number:02d}")).expanduser()


def _how_to_label(config: IterateConfig, file: Path, now: Round) -> str:
    page = now.folder / "label.yaml"
    settings = {
        "store": str(now.folder / "labels.db"),
        "answers": {"kind": "file", "path": str(now.answers), "version": policy_before(config, now.number)},
        "answers_per_prompt": config.answers,
    }
    page.write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return (
        f"{now.name} waits for people. Rank its answers:  rlhf label {page}\n"
        f"then export the rankings:  rlhf label {page} --export {file}\n"
        "then the same command as now goes on"
    )


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


def _write(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, b"".join(map(json_line, rows)))

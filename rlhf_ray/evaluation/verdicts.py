"""Pairwise verdicts: of rewards, of a judging service, of people; and the win rates that follow."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_ray.config.data import RowSource
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.sources import read_rows
from rlhf_ray.evaluation.answers import ModelResult
from rlhf_ray.evaluation.statistics import WinRate, bootstrap_mean, is_known, proportion

Winner = Literal["candidate", "baseline", "tie"]
WORTH: dict[Winner, float] = {"candidate": 1.0, "tie": 0.5, "baseline": 0.0}
COLUMNS = ("prompt", "model_a", "model_b", "winner")
MOST_NAMED = 3
"""Bad rows of a file that an error names."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Decision which of two answers to a prompt is better."""

    prompt: str
    """Id or JSON of the prompt; verdicts about one hang together."""
    winner: Winner
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Judgement:
    """Judgement of a model against the baseline."""

    outcome: WinRate
    failed: int = 0
    """Pairs without a verdict; they are left out."""


def judged(verdicts: Sequence[Verdict], failed: int = 0) -> Judgement:
    """Compute the candidate's win rate; a tie counts as half a win.

    The interval is Wilson's where each prompt was judged once, else a bootstrap over prompts: verdicts about one prompt
    are not independent.
    """
    counts = {winner: sum(verdict.winner == winner for verdict in verdicts) for winner in WORTH}
    prompts = [verdict.prompt for verdict in verdicts]
    if len(set(prompts)) == len(prompts):
        rate = proportion(counts["candidate"] + counts["tie"] / 2, len(verdicts))
    else:
        rate = bootstrap_mean([WORTH[verdict.winner] for verdict in verdicts], prompts)
    return Judgement(WinRate(counts["candidate"], counts["tie"], counts["baseline"], rate), failed)


def by_scores(
    candidate: ModelResult, baseline: ModelResult, source: str, tie_margin: float
) -> tuple[list[Verdict], int]:
    """Let a source's higher score win; count the pairs that have a score missing."""
    verdicts = []
    pairs = zip(candidate.prompts, candidate.scores[source], baseline.scores[source], strict=True)
    for prompt, mine, theirs in pairs:
        if is_known(mine) and is_known(theirs):
            verdicts.append(Verdict(prompt, winner_of(mine - theirs, tie_margin)))
    return verdicts, len(candidate.answers) - len(verdicts)


def winner_of(difference: float, tie_margin: float) -> Winner:
    """Tell who wins by a score difference of candidate less baseline."""
    return "candidate" if difference > tie_margin else "baseline" if difference < -tie_margin else "tie"


def agreed(first: Winner | None, swapped: Winner | None) -> Winner | None:
    """Combine the verdicts of both orders of the answers: a tie where they contradict each other.

    None where one of them has no answer. (Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.4.)
    """
    if first is None or swapped is None:
        return None
    return first if first == swapped else "tie"


def read_people(path: Path, candidate: str, baseline: str) -> list[Verdict]:
    """Return verdicts of people about two models, whichever was a or b; rows about other models are passed over.

    The file is an export of `rlhf compare`, or any file of rows with `COLUMNS`.

    Raises:
        BadInput: the file cannot be read, or a row is no verdict.
    """
    return [
        Verdict(
            json.dumps(row["prompt"], ensure_ascii=False, sort_keys=True),
            _winner(row, candidate),
            str(row.get("reason") or ""),
        )
        for row in _people_rows(path)
        if {row["model_a"], row["model_b"]} == {candidate, baseline}
    ]


def check_people(path: Path, models: Iterable[str]) -> None:
    """Check a file of people's verdicts before anything starts.

    Raises:
        BadInput: it cannot be read, a line is no verdict, or no line is about two of the models.
    """
    known, found = set(models), set()
    rows = _people_rows(path)
    for row in rows:
        found |= {row["model_a"], row["model_b"]}
        if {row["model_a"], row["model_b"]} <= known:
            return
    names = ", ".join(sorted(map(str, found))[:8]) or "no row"
    raise BadInput(
        f"{path}: no verdict is about two of {', '.join(sorted(known))}; the file has {names}; "
        "`version` of a and b in the config of rlhf compare names them"
    )


def _winner(row: Mapping[str, Any], candidate: str) -> Winner:
    if row["winner"] == "tie":
        return "tie"
    return "candidate" if row[f"model_{row['winner']}"] == candidate else "baseline"


def _people_rows(path: Path) -> list[Row]:
    rows: list[Row] = []
    bad: list[str] = []
    for place, row in read_rows(RowSource(path=str(path), layout="trl")):
        problem = str(row) if isinstance(row, BadRow) else _problem(row)
        if problem:
            bad.append(f"{place}: {problem}")
        elif not isinstance(row, BadRow):
            rows.append(row)
    if bad:
        more = f", and {len(bad) - MOST_NAMED} more" if len(bad) > MOST_NAMED else ""
        raise BadInput(f"{'; '.join(bad[:MOST_NAMED])}{more}")
    return rows


def _problem(row: Row) -> str:
    missing = [name for name in COLUMNS if row.get(name) in (None, "")]
    if missing:
        return f"has no {', '.join(missing)}"
    if row["winner"] not in ("a", "b", "tie"):
        return f"winner is a, b or tie, not {str(row['winner'])[:40]!r}"
    if row["model_a"] == row["model_b"]:
        return f"compares {str(row['model_a'])[:40]!r} with itself"
    return ""

"""Verdicts of people and of scores, and the rates that follow."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.evaluation.answers import Answer, ModelResult
from rlhf_ray.evaluation.verdicts import Verdict, agreed, by_scores, check_people, judged, read_people

ROW = {"prompt": "p", "a": "x", "b": "y", "winner": "a", "model_a": "new", "model_b": "old", "annotator": "ann"}


def write(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_people_are_understood_whichever_side_a_model_was_on(tmp_path: Path) -> None:
    swapped = {"model_a": "old", "model_b": "new"}
    other = {"model_a": "third", "model_b": "new"}
    hostile = {"prompt": "<script>\u2028\t'; DROP TABLE", "reason": "因为\u2028更好", "winner": "tie"}
    file = write(tmp_path / "people.jsonl", ROW, ROW | swapped, "", ROW | {"winner": "b"}, ROW | other, ROW | hostile)
    verdicts = read_people(file, "new", "old")
    assert [verdict.winner for verdict in verdicts] == ["candidate", "baseline", "baseline", "tie"]
    assert verdicts[3].reason == "因为\u2028更好"
    assert [verdict.winner for verdict in read_people(file, "old", "new")] == [
        "baseline",
        "candidate",
        "candidate",
        "tie",
    ]
    check_people(file, ["old", "new"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["{"], "people.jsonl:1: not JSON"),
        ([[1]], "people.jsonl:1: is a list, not an object"),
        ([ROW, {key: ROW[key] for key in ("prompt", "winner")}], "people.jsonl:2: has no model_a, model_b"),
        ([ROW | {"winner": "A"}], "winner is a, b or tie, not 'A'"),
        ([ROW | {"model_b": "new"}], "compares 'new' with itself"),
        ([ROW | {"winner": "c"}] * 5, "and 2 more"),
        ([ROW | {"model_a": "third"}], "no verdict is about two of new, old; the file has old, third"),
        ([], "the file has no row"),
        ([ROW | {"model_a": "third"}], "`version` of a and b in the config of rlhf compare names them"),
    ],
)
def test_files_that_hold_no_verdicts(rows: list[Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="people") as error:
        check_people(write(tmp_path / "people.jsonl", *rows), ["old", "new"])
    assert words in str(error.value)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "people.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="is UTF-16"):
        check_people(tmp_path / "people.jsonl", ["old", "new"])


def result(name: str, scores: list[float | None]) -> ModelResult:
    answers = [Answer(str(row), 0, "p", "c", [1], "stop") for row in range(len(scores))]
    return ModelResult(name, name, answers, {"reward": scores})


def test_scores_decide_and_unknown_ones_are_left_out() -> None:
    candidate = result("new", [1.0, 0.5, 0.0, None, float("nan")])
    verdicts, missing = by_scores(candidate, result("old", [0.0, 0.4, 1.0, 0.0, 0.0]), "reward", tie_margin=0.2)
    assert [verdict.winner for verdict in verdicts] == ["candidate", "tie", "baseline"]
    assert missing == 2
    outcome = judged(verdicts, missing).outcome
    assert (outcome.wins, outcome.ties, outcome.losses, outcome.rate.value) == (1, 1, 1, 0.5)


def test_several_verdicts_about_a_prompt_widen_the_interval() -> None:
    alone = [Verdict(str(row), "candidate" if row % 2 else "baseline") for row in range(40)]
    together = [Verdict(str(row // 10), "candidate" if row // 10 % 2 else "baseline") for row in range(40)]
    narrow, wide = judged(alone).outcome.rate, judged(together).outcome.rate
    assert narrow.value == wide.value == 0.5
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_two_orders_agree_or_tie() -> None:
    assert agreed("candidate", "candidate") == "candidate"
    assert agreed("candidate", "baseline") == agreed("tie", "baseline") == "tie"
    assert agreed(None, "baseline") is None

"""Scores on the disk: what was added is there, whatever happens then."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.records import Sample, WeightSpan
from rlhf_ray.feedback.scored_rows import PERSON, ScoredRow, ScoredRows, draw_feedback, read_for_replay

RANGE = (-2.0, 2.0)


def row(step: int, reward: float = 1.5, response: str = "很好\t\n<script>\u202e😀\ud83d") -> ScoredRow:
    tokens = np.array([5, 6, 7], np.int32)
    sample = Sample(
        *(f"p{step}", f"g{step}", 0, 0, 3, [{"role": "user", "content": "质量"}], response, tokens[:2], tokens),
        *(np.array([True, True, True]), np.array([-0.1, -2.5, -1e-7], np.float32), [WeightSpan(0, 3, 4)], "stop"),
        rewards={PERSON: reward},
        columns={"topic": "手机"},
    )
    return ScoredRow(step, sample, 2.25, "vocabulary")


def same(one: ScoredRow, other: ScoredRow) -> bool:
    return replace(one, time="").to_json() == replace(other, time="").to_json()


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    rows = ScoredRows(path)
    for step in (1, 2):
        rows.add(row(step, reward=step / 4))
        # Whoever looks now, or after a crash, finds it.
        assert len(path.read_bytes().splitlines()) == step
    again = ScoredRows(path)
    assert len(again) == 2
    assert all(same(one, row(step, step / 4)) for step, one in enumerate(again, 1))
    found = again.of_step(2)
    assert found is not None
    assert found.sample.behaviour_logprobs.tobytes() == row(2).sample.behaviour_logprobs.tobytes()
    assert again.of_step(3) is None
    first = json.loads(path.read_bytes().splitlines()[0])
    assert list(first)[:6] == ["format", "step", "time", "prompt", "response", "reward"]


def test_a_line_that_a_crash_cut_off_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    ScoredRows(path).add(row(1))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:50])
    rows = ScoredRows(path)
    assert len(rows) == 1
    rows.add(row(2))
    assert [one.step for one in ScoredRows(path)] == [1, 2]


BAD: dict[str, tuple[Any, str]] = {
    # name: (content of the file, or a change of its second row, words of the message)
    "not JSON": (b"hello\n", "line 1: not an answer that `rlhf feedback` stored"),
    "another file of ours": (b'{"format": "rlhf_ray samples 1"}\n', "line 1"),
    "a list": (b"[1, 2]\n", "line 1"),
    "nothing": (b"", "holds no scored answer"),
    "one cut line": (b'{"format": ', "holds no scored answer"),
    "no reward": ({"reward": None}, "line 2: not an answer"),
    "a reward in words": ({"reward": "good"}, "line 2: not an answer"),
    "a reward that is NaN": ({"reward": float("nan")}, "line 2: not an answer"),
    "a score out of range": ({"reward": 3.0}, "line 2: score 3 is outside reward_range -2 ~ 2"),
    "no sample": ({"sample": {}}, "line 2: not an answer"),
    "another tokenizer": ({"vocabulary": "other"}, "line 2: its tokens belong to another tokenizer"),
}


@pytest.mark.parametrize("case", BAD)
def test_files_that_cannot_be_replayed(case: str, tmp_path: Path) -> None:
    content, words = BAD[case]
    path = tmp_path / "rows.jsonl"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        rows = ScoredRows(path)
        rows.add(row(1))
        rows.add(row(2))
        first, second = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(first + json.dumps(json.loads(second) | content).encode() + b"\n")
    with pytest.raises(BadInput) as caught:
        read_for_replay(path, RANGE, "vocabulary")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_folder_cannot_be_replayed(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        read_for_replay(tmp_path, RANGE, "vocabulary")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_picture_of_so_many_answers(count: int, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    draw_feedback([row(step, reward=step - 2.0) for step in range(1, count + 1)], path)
    assert path.read_bytes().startswith(b"\x89PNG")

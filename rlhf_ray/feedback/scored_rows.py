"""Answers with a person's scores, in a file that grows by one line at each."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.data.records import Sample
from rlhf_ray.rollout.recording import record_line, sample_from_json, sample_to_json

FORMAT = "rlhf_ray feedback 1"
PERSON = "person"
"""Name of the reward source that the person is."""


@dataclass(frozen=True)
class ScoredRow:
    """An answer, its score, and what it takes to learn from it again."""

    step: int
    """Which step of the run learned from it, from 1."""
    sample: Sample
    """With the score as its reward."""
    label_seconds: float
    vocabulary: str
    """Of the tokenizer that the sample's ids belong to, see `vocabulary_of`."""
    time: str = ""
    """When the person scored, UTC."""

    @property
    def reward(self) -> float:
        """The score."""
        return float(self.sample.rewards[PERSON] or 0.0)

    def to_json(self) -> dict[str, Any]:
        """Return the row as values that JSON can hold: first what a person looks for, then the rest of the sample."""
        sample = sample_to_json(self.sample)
        first = {"prompt": sample.pop("prompt"), "response": sample.pop("response"), "reward": self.reward}
        return {
            "format": FORMAT,
            "step": self.step,
            "time": self.time,
            **first,
            "label_seconds": self.label_seconds,
            "vocabulary": self.vocabulary,
            "sample": sample,
        }


class ScoredRows:
    """Rows by step, each on the disk once it is added. A line that a crash cut off is left out and overwritten."""

    def __init__(self, path: Path) -> None:
        """Open, or begin.

        Raises:
            BadInput: the file holds something else.
        """
        self._path = path
        rows, self._size = _read(path) if path.exists() else ([], 0)
        self._rows = {row.step: row for row in rows}

    def __iter__(self) -> Iterator[ScoredRow]:
        return iter(self._rows[step] for step in sorted(self._rows))

    def __len__(self) -> int:
        return len(self._rows)

    def of_step(self, step: int) -> ScoredRow | None:
        """Return the row that a step learned from, or will."""
        return self._rows.get(step)

    def add(self, row: ScoredRow) -> None:
        """Append a row; it is on the disk when this returns.

        Raises:
            RlhfError: the storage is full; the file is as before.
        """
        row = replace(row, time=row.time or datetime.now(UTC).isoformat(timespec="seconds"))
        line = record_line(row.to_json(), f"step {row.step}")
        try:
            with self._path.open("r+b" if self._path.exists() else "wb") as file:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RlhfError(f"{self._path}: the score was not stored: {error.strerror or error}") from error
        self._size += len(line)
        self._rows[row.step] = row


def read_for_replay(path: Path, reward_range: tuple[float, float], vocabulary: str) -> list[ScoredRow]:
    """Read the rows of an earlier session, in their order.

    Args:
        path: its `feedback.jsonl`.
        reward_range: that scores must lie in.
        vocabulary: of the tokenizer that reads them now.

    Raises:
        BadInput: no file of scores, or its rows are not for this model or range; names the line.
    """
    try:
        rows, _ = _read(path)
    except OSError as error:
        raise BadInput(f"replay: cannot read {path}: {error.strerror or error}") from error
    if not rows:
        raise BadInput(f"replay: {path} holds no scored answer")
    lowest, highest = reward_range
    for number, row in enumerate(rows, 1):
        if not lowest <= row.reward <= highest:
            raise BadInput(
                f"replay: {path}, line {number}: score {row.reward:g} is outside reward_range {lowest:g} ~ {highest:g}"
            )
        if row.vocabulary != vocabulary:
            raise BadInput(f"replay: {path}, line {number}: its tokens belong to another tokenizer than this model's")
    return rows


def vocabulary_of(tokenizer: Any) -> str:
    """Hash a tokenizer's tokens and their ids to a short text."""
    tokens = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(json.dumps(tokens).encode()).hexdigest()[:16]


def _read(path: Path) -> tuple[list[ScoredRow], int]:
    """Return whole rows, and the bytes that they fill."""
    rows, size = [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(_row(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"{type(error).__name__}: {error}"
                raise BadInput(
                    f"{path}, line {number}: not an answer that `rlhf feedback` stored ({reason}); name another file, "
                    "or move this one away"
                ) from None
            size += len(line)
    return rows, size


def _row(value: dict[str, Any]) -> ScoredRow:
    if value["format"] != FORMAT:
        raise ValueError(f"format {value['format']!r}")
    reward, seconds = float(value["reward"]), float(value["label_seconds"])
    if not (math.isfinite(reward) and math.isfinite(seconds)):
        raise ValueError("a number that is none")
    sample = sample_from_json(value["sample"] | {"prompt": value["prompt"], "response": value["response"]})
    if not len(sample.response_ids) == len(sample.written) == len(sample.behaviour_logprobs):
        raise ValueError("arrays of different lengths")
    sample.rewards = {PERSON: reward}
    return ScoredRow(int(value["step"]), sample, seconds, str(value["vocabulary"]), str(value["time"]))


PICTURE_FILE = "Terminal-Human-Feedback.png"


def draw_feedback(rows: Iterable[ScoredRow], path: Path) -> None:
    """Draw the scores and the time that each took, over the answers in their order; replaces `path` whole."""
    # matplotlib takes half a second to import; a session that ends in bad input never needs it.
    from rlhf_ray.tracking.curves import draw_panels
    from rlhf_ray.tracking.panels import COLOURS, Line, Panel

    rows = list(rows)
    steps = [row.step for row in rows]

    def panel(title: str, unit: str, colour: str, values: list[float]) -> Panel:
        return Panel(title, unit, False, [Line(title, title, colour, steps, values, None, held_out=False)])

    panels = [
        panel("Reward history", "score", COLOURS[0], [row.reward for row in rows]),
        panel("Label time", "seconds", COLOURS[1], [row.label_seconds for row in rows]),
    ]
    draw_panels("Terminal human feedback", f"{len(rows)} answers", panels if rows else [], path, columns=2)

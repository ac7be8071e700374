"""Tokenized rows of supervised jobs, and their batches."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import Ranking


@dataclass(frozen=True, slots=True)
class SupervisedRow:
    """Tokens to learn from."""

    prompt_ids: Int32[np.ndarray, " prompt"]
    """At least one token, so that each token of the response has something before it."""
    response_ids: Int32[np.ndarray, " response"]
    written: Bool[np.ndarray, " response"]
    """Tokens that are learned; the turns of others in a conversation are false."""

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


@dataclass(frozen=True, slots=True)
class RankedRow:
    """A ranking whose texts are token ids: prompt, response and EOS as a reward model reads them."""

    texts: tuple[Int32[np.ndarray, " tokens"], ...]
    ranks: Int32[np.ndarray, " texts"]
    """0 is best; equal ranks are ties."""
    grades: Float32[np.ndarray, " texts"] | None = None
    """How good each text is, where the data says so: a pair's margin is the difference."""


@dataclass(frozen=True, slots=True)
class RankedBatch:
    """The texts of several rankings, one row each."""

    batch: TokenBatch
    """With how all texts of a ranking begin as their prompt, which can be computed once for them; a score stands at the
    last token."""
    groups: Int32[np.ndarray, " rows"]
    """Number of the ranking in the batch."""
    ranks: Int32[np.ndarray, " rows"]
    grades: Float32[np.ndarray, " rows"] | None
    """0 throughout rankings without grades; None if there are none at all."""


def supervised_batch(rows: Sequence[SupervisedRow]) -> TokenBatch:
    """Pack rows in their order."""
    return TokenBatch.from_sequences(
        [row.prompt_ids for row in rows], [row.response_ids for row in rows], [row.written for row in rows]
    )


def ranked_batch(rankings: Sequence[RankedRow]) -> RankedBatch:
    """Pack the texts of rankings in their order."""
    texts = [text for ranking in rankings for text in ranking.texts]
    sizes = [len(ranking.texts) for ranking in rankings]
    graded = any(ranking.grades is not None for ranking in rankings)
    grades = [np.zeros(len(r.texts), np.float32) if r.grades is None else r.grades for r in rankings]
    shared = [common_beginning(ranking.texts) for ranking in rankings for _ in ranking.texts]
    return RankedBatch(
        batch=TokenBatch.from_sequences(
            [text[:size] for text, size in zip(texts, shared, strict=True)],
            [text[size:] for text, size in zip(texts, shared, strict=True)],
        ),
        groups=np.repeat(np.arange(len(rankings), dtype=np.int32), sizes),
        ranks=np.concatenate([ranking.ranks for ranking in rankings]) if rankings else np.zeros(0, np.int32),
        grades=np.concatenate(grades) if graded else None,
    )


def common_beginning(texts: Sequence[Int32[np.ndarray, " tokens"]]) -> int:
    """Count the tokens with which all of the texts begin."""
    shortest = min(len(text) for text in texts)
    first = np.stack([text[:shortest] for text in texts])
    differs = (first != first[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest


MARGIN = "margin"
"""TRL's column: by how much a pair's better answer is better."""
GRADES = "grades"
"""A number for each response; better ones have no lower ones."""


def grades_of(ranking: Ranking) -> Float32[np.ndarray, " texts"] | None:
    """Take grades from a pair's `margin`, or from `grades` in the responses' order; None where a row has neither.

    Raises:
        BadRow: not finite numbers, another count, a margin of a longer list, or grades that contradict the ranks.
    """
    margin, grades = ranking.columns.get(MARGIN), ranking.columns.get(GRADES)
    if grades is not None:
        return _listed(grades, ranking)
    if margin is None:
        return None
    if len(ranking.ranks) != 2:
        raise BadRow(f"`{MARGIN}` belongs to a pair, this row has {len(ranking.ranks)} responses; give `{GRADES}`")
    if not _is_number(margin) or margin < 0:
        raise BadRow(f"`{MARGIN}` must be a number of at least 0, not {margin!r}")
    return np.array([margin if rank == 0 else 0.0 for rank in ranking.ranks], np.float32)


def _listed(grades: Any, ranking: Ranking) -> Float32[np.ndarray, " texts"]:
    if not isinstance(grades, list) or not all(map(_is_number, grades)):
        raise BadRow(f"`{GRADES}` must be a list of numbers, one for each response")
    if len(grades) != len(ranking.ranks):
        raise BadRow(f"{len(grades)} grades for {len(ranking.ranks)} responses")
    ordered = sorted(zip(ranking.ranks, grades, strict=True), key=lambda one: (one[0], -one[1]))
    for (rank, grade), (next_rank, next_grade) in itertools.pairwise(ordered):
        if rank < next_rank and grade < next_grade:
            raise BadRow(f"a response of rank {rank} has grade {grade:g}, one of rank {next_rank} has {next_grade:g}")
    return np.array(grades, np.float32)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

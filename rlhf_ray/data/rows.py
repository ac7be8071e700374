"""Tokenized rows of supervised jobs, and their batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32

from rlhf_ray.data.batches import TokenBatch


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
    """Tokens with which all of the texts begin."""
    shortest = min(len(text) for text in texts)
    first = np.stack([text[:shortest] for text in texts])
    differs = (first != first[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest

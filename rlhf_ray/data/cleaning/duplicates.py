"""Rows that say what an earlier row says: the same text, or nearly, by exact Jaccard similarity."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from rlhf_ray.data.cleaning.near_texts import NearTexts, TextKeys
from rlhf_ray.data.cleaning.signatures import ngram_set


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Likeness of a later row to an earlier one."""

    of: int
    """Number of the earlier row among those kept."""
    place: str
    """Where that one stood."""
    similarity: float
    """1 if the texts are the same."""


class DuplicateFinder:
    """Remembers rows that were kept, and finds for each new row the first of them that it repeats."""

    def __init__(self, shingle: int, threshold: float | None, folder: str | None = None) -> None:
        """Find duplicates by shingles of so many characters, near ones from `threshold` on (None: only same texts).
        `folder` is for the texts.
        """
        self.near = NearTexts(shingle, threshold, folder)

    def filter(self, texts: Sequence[str], places: Sequence[str], keys: TextKeys) -> list[Duplicate | None]:
        """Return what each row repeats, or None; rows that repeat nothing are kept and numbered in their order.

        Args:
            texts: in their normal form.
            places: where the rows stand, for those that repeat them.
            keys: of `text_keys`.
        """
        first_of: dict[str, int] = {}
        # Rows that repeat a row of this batch word for word share its fate, so that a thousand of them cost nothing.
        same = [first_of.setdefault(text, row) for row, text in enumerate(texts)]
        shared = self.near.candidates(keys.of([row for row, earlier in enumerate(same) if row == earlier]))
        first = self.near.count
        found: list[Duplicate | None] = []
        number: dict[int, int] = {}
        number_of: dict[int, int] = {}
        position = -1
        for row, text in enumerate(texts):
            if same[row] != row:
                earlier = found[same[row]]
                found.append(earlier or Duplicate(number_of[same[row]], places[same[row]], 1.0))
                continue
            position += 1
            known, among = shared.get(position, ({}, {}))
            candidates = known | {number[other]: count for other, count in among.items() if other in number}
            duplicate = self._confirm(text, candidates) if candidates else None
            found.append(duplicate)
            if duplicate is None:
                number[position] = number_of[row] = self.near.put(text, places[row])
        self.near.add_keys(first, keys.of(list(number_of)))
        return found

    def _confirm(self, text: str, shared: Mapping[int, int]) -> Duplicate | None:
        """Return the first of the candidates that are similar enough."""
        near = self.near
        ngrams = ngram_set(text, near.shingle)
        for number in sorted(near.ordered(shared)):
            earlier = near.text(number)
            similarity = 1.0 if earlier == text else near.similarity(ngrams, text, earlier)
            if similarity == 1 or (near.threshold is not None and similarity >= near.threshold):
                return Duplicate(number, near.place(number), similarity)
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.near.close()

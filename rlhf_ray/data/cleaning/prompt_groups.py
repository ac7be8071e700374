"""Prompts that say nearly the same, so that no two parts of a data set ask it.

Near is not passed on: a may be near b, and b near c, but a far from c. Still all three stand in one group, for each
pair of near prompts must be in one part. So groups are the connected components of nearness (single linkage).

Where so many prompts are alike that comparing all would cost their square, they are joined without: a group that is too
large shows no part what another has, one that is too small does.
"""

from array import array
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int64, UInt32, UInt64

from rlhf_ray.data.cleaning.bucket_index import LONGEST_CHAIN
from rlhf_ray.data.cleaning.near_texts import NearTexts, Shared, TextKeys, places_of_keys
from rlhf_ray.data.cleaning.signatures import jaccard, ngram_set

MOST_COMPARED = 256
"""Prompts with which one is compared; it is joined with further candidates."""
MOST_HELD = 1 << 17
"""N-grams of prompts compared before, kept for the next comparison; about 100 bytes each."""


class PromptGroups:
    """Groups of all prompts that were added; about 12 bytes of each beside the index of near texts."""

    def __init__(self, shingle: int, threshold: float, folder: str | None = None) -> None:
        """Group prompts by shingles of so many characters, near ones from `threshold` on; `folder` is for the texts."""
        self.near = NearTexts(shingle, threshold, folder)
        self.unchecked = 0
        """Joins without a comparison."""
        self._threshold = threshold
        self._keys = array("Q")
        self._parents = array("i")
        """Of each prompt one that came before it in its group, or itself: a forest (Galler and Fischer 1964)."""
        self._crowded: dict[int, int] = {}
        """Keys that more prompts share than are looked at: all those are one group, that of the prompt given here."""
        self._unshared = 0
        """Keys given to prompts in place of crowded ones, so that nobody walks a crowd to find them."""
        self._ngrams: dict[int, set[str]] = {}
        self._held = 0

    @property
    def bytes(self) -> int:
        """Memory held, without the n-grams of the latest comparisons."""
        return self.near.bytes + sum(len(one) * one.itemsize for one in (self._keys, self._parents))

    def add(self, texts: Sequence[str], prompt_keys: Sequence[int], keys: TextKeys) -> list[int]:
        """Give prompts numbers, the same for the same prompt; each may join groups.

        Args:
            texts: in their normal form.
            prompt_keys: 64 bits of each, by which a prompt is known again.
            keys: of `text_keys`.
        """
        first_of: dict[int, int] = {}
        same = [first_of.setdefault(key, row) for row, key in enumerate(prompt_keys)]
        distinct = list(first_of.values())
        if not distinct:
            return []
        position = {row: place for place, row in enumerate(distinct)}
        chosen = keys.of(distinct)
        marks = places_of_keys(chosen.buckets)
        crowded = self._crowds(marks)
        shared = self.near.shared(TextKeys(self._apart(chosen.buckets, crowded), chosen.sketches))
        first = self.near.count
        numbers = self._numbers([texts[row] for row in distinct], [prompt_keys[row] for row in distinct], shared)
        crowded.reshape(-1)[shared.crowded] = True
        self._join_crowds(marks[crowded], numbers[np.nonzero(crowded)[0]])
        self._compare_all(numbers, first, shared)
        # Those that were there before have their keys in the index.
        new = np.flatnonzero(numbers >= first)
        buckets = self._apart(chosen.buckets, crowded)
        self.near.add_keys(first, TextKeys(buckets[new], chosen.sketches[new]))
        return numbers[[position[row] for row in same]].tolist()

    def key(self, number: int) -> int:
        """Return what all prompts of a prompt's group have in common: the key of the first of them."""
        return self._keys[self._root(number)]

    def sizes(self) -> list[int]:
        """Count the prompts of each group, the largest first."""
        roots = [self._root(number) for number in range(len(self._parents))]
        return sorted(np.unique(roots, return_counts=True)[1].tolist(), reverse=True)

    def close(self) -> None:
        """Delete the texts."""
        self.near.close()

    def _crowds(self, marks: UInt64[np.ndarray, "rows keys"]) -> Bool[np.ndarray, "rows keys"]:
        """Tell which keys are known to be crowded, or are in this batch."""
        found, of, counts = np.unique(marks, return_inverse=True, return_counts=True)
        known = np.isin(found, np.fromiter(self._crowded, np.uint64, len(self._crowded)))
        crowded: np.ndarray = (known | (counts > LONGEST_CHAIN))[of].reshape(marks.shape)
        return crowded

    def _apart(
        self, buckets: UInt32[np.ndarray, "rows keys"], crowded: Bool[np.ndarray, "rows keys"]
    ) -> UInt32[np.ndarray, "rows keys"]:
        """Replace the crowded keys by others, which no prompt shares."""
        count = int(crowded.sum())
        given = buckets.copy()
        given[crowded] = np.arange(self._unshared, self._unshared + count).astype(np.uint32)
        self._unshared += count
        return given

    def _numbers(self, texts: Sequence[str], prompt_keys: Sequence[int], shared: Shared) -> Int64[np.ndarray, " rows"]:
        """Return the numbers of different prompts: those that they have, or new ones."""
        numbers = np.full(len(texts), -1, np.int64)
        rows, others, _ = shared.known
        same = np.frombuffer(self._keys, np.uint64)[others] == np.array(prompt_keys, np.uint64)[rows]
        numbers[rows[same]] = others[same]
        for row in np.flatnonzero(numbers < 0).tolist():
            numbers[row] = self.near.put(texts[row], "")
            self._keys.append(prompt_keys[row])
            self._parents.append(int(numbers[row]))
        return numbers

    def _join_crowds(self, marks: UInt64[np.ndarray, " entries"], numbers: Int64[np.ndarray, " entries"]) -> None:
        """Join all prompts that share a crowded key, given each with its key."""
        for mark, number in zip(marks.tolist(), numbers.tolist(), strict=True):
            if mark not in self._crowded:
                self._crowded[mark] = number
                for other in self.near.index.rows_of(mark >> 32, mark & 0xFFFFFFFF):
                    self.unchecked += self._join(number, other)
            self.unchecked += self._join(number, self._crowded[mark])

    def _compare_all(self, numbers: Int64[np.ndarray, " rows"], first: int, shared: Shared) -> None:
        """Join new prompts with those near to them."""
        rows, others, counts = (
            np.concatenate(both)
            for both in zip(
                (numbers[shared.known[0]], shared.known[1], shared.known[2]),
                (numbers[shared.among[0]], numbers[shared.among[1]], shared.among[2]),
                strict=True,
            )
        )
        open_ = (rows >= first) & (self._roots(rows) != self._roots(others))
        rows, others, counts = rows[open_], others[open_], counts[open_]
        order = np.lexsort((others, -counts, rows))
        last, compared = -1, 0
        for number, other in zip(rows[order].tolist(), others[order].tolist(), strict=True):
            if number != last:
                last, compared = number, 0
            if self._root(number) == self._root(other):
                continue
            compared += 1
            if compared > MOST_COMPARED:
                self.unchecked += self._join(number, other)
            elif jaccard(self._ngrams_of(number), self._ngrams_of(other)) >= self._threshold:
                # Of prompts shorter than a shingle it is 0 or 1.
                self._join(number, other)

    def _ngrams_of(self, number: int) -> set[str]:
        found = self._ngrams.pop(number, None)
        if found is None:
            found = ngram_set(self.near.text(number), self.near.shingle)
            self._held += len(found)
        self._ngrams[number] = found
        while self._held > MOST_HELD and len(self._ngrams) > 1:
            # The one that was not asked for longest.
            self._held -= len(self._ngrams.pop(next(iter(self._ngrams))))
        return found

    def _join(self, one: int, other: int) -> bool:
        """Join the groups of two prompts; tell whether they were two."""
        earlier, later = sorted((self._root(one), self._root(other)))
        self._parents[later] = earlier
        return earlier != later

    def _root(self, number: int) -> int:
        parents = self._parents
        while parents[number] != number:
            # Each step shortens the way of the next one who asks.
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    def _roots(self, numbers: Int64[np.ndarray, " prompts"]) -> Int64[np.ndarray, " prompts"]:
        parents = np.frombuffer(self._parents, np.int32)
        while len(numbers):
            above = parents[numbers]
            if (above == numbers).all():
                break
            numbers = above.astype(np.int64)
        return numbers

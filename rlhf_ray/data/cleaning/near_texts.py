"""Texts by their numbers, and which earlier ones a new text may be near to: MinHash finds, exact Jaccard confirms."""

import hashlib
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
from jaxtyping import Int64, UInt32, UInt64

from rlhf_ray.data.cleaning.bucket_index import LONGEST_CHAIN, BucketIndex
from rlhf_ray.data.cleaning.signatures import (
    BANDS,
    at_most,
    band_keys,
    jaccard,
    most_unequal_bits,
    ngram_set,
    rows_of_band,
    shingles,
    signatures,
    sketches,
)

MOST_CHECKED = 64
"""Candidates whose similarity is computed for one text: those that share the most keys with it."""
BELOW_SAME = math.nextafter(1.0, 0.0)
"""Similarity of different texts whose sets of shingles are equal."""


class TextSpool:
    """Texts and the places of their rows on disk, by their numbers, so that memory holds 8 bytes of each."""

    def __init__(self, folder: str | None = None) -> None:
        # Open as long as the object; `close` ends it, and the system if the process dies.
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix="texts")  # noqa: SIM115
        self._ends = np.zeros(1 << 12, np.int64)
        self.count = 0

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._ends.nbytes

    def add(self, text: str, place: str) -> None:
        """Append a text in its normal form, which has no line break."""
        content = f"{text}\n{place}".encode()
        self._file.write(content)
        if self.count + 1 == len(self._ends):
            self._ends = np.concatenate([self._ends, np.zeros_like(self._ends)])
        self._ends[self.count + 1] = self._ends[self.count] + len(content)
        self.count += 1

    def text(self, number: int) -> str:
        """Return a text by its number."""
        return self._read(number)[0]

    def place(self, number: int) -> str:
        """Return where the row of a text stood: its file and line."""
        return self._read(number)[1]

    def _read(self, number: int) -> tuple[str, str]:
        begin, end = int(self._ends[number]), int(self._ends[number + 1])
        self._file.flush()
        text, _, place = os.pread(self._file.fileno(), end - begin, begin).decode().partition("\n")
        return text, place

    def close(self) -> None:
        """Delete the file."""
        self._file.close()


@dataclass(frozen=True)
class TextKeys:
    """Keys by which texts are found."""

    buckets: UInt32[np.ndarray, "texts keys"]
    """One of the whole text, then those of its bands."""
    sketches: UInt64[np.ndarray, " texts"]
    """Zeros where only same texts are wanted."""

    def of(self, texts: Sequence[int]) -> "TextKeys":
        """Return the keys of some of the texts, by the texts' places."""
        chosen = np.asarray(texts, np.int64)
        return TextKeys(self.buckets[chosen], self.sketches[chosen])


SharedKeys = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Texts, other ones, and how many keys they share; each pair once."""


@dataclass(frozen=True)
class Shared:
    """Texts that share keys and whose sketches are alike, for those asked about by their places."""

    known: SharedKeys
    """With earlier texts, by number."""
    among: SharedKeys
    """With earlier ones of those asked about, by place."""
    crowded: Int64[np.ndarray, " crowded"]
    """Keys, counted through all, of which only the newest earlier texts were looked at, or just all."""


def text_keys(texts: Sequence[str], shingle: int, threshold: float | None) -> TextKeys:
    """Return keys of texts in their normal form; bands and sketches if near ones are wanted."""
    if not texts:
        return TextKeys(np.empty((0, key_count(threshold)), np.uint32), np.zeros(0, np.uint64))
    whole = np.array(
        [[int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest())] for text in texts], np.uint32
    )
    if threshold is None:
        return TextKeys(whole, np.zeros(len(texts), np.uint64))
    smallest = signatures(shingles(texts, shingle), BANDS * rows_of_band(threshold))
    return TextKeys(np.concatenate([whole, band_keys(smallest)], axis=1), sketches(smallest))


def key_count(threshold: float | None) -> int:
    """Count the keys of one text."""
    return 1 if threshold is None else 1 + BANDS


class NearTexts:
    """Remembers texts. Memory holds their keys; they themselves are on disk."""

    def __init__(self, shingle: int, threshold: float | None, folder: str | None = None) -> None:
        """Find texts by shingles of so many characters, near ones from `threshold` on (None: only same texts).
        `folder` is for the texts.
        """
        self.shingle = shingle
        self.threshold = threshold
        self.index = BucketIndex(key_count(threshold))
        self._unequal = 64 if threshold is None else most_unequal_bits(threshold)
        self._sketches = np.zeros(1 if threshold is None else 1 << 12, np.uint64)
        self._texts = TextSpool(folder)
        self.unchecked = 0
        """Texts with more candidates than were looked at."""

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self.index.bytes + self._texts.bytes + self._sketches.nbytes

    @property
    def count(self) -> int:
        """Texts put down so far; the next one's number."""
        return self._texts.count

    def put(self, text: str, place: str) -> int:
        """Put a text down, with where it stands, and return its number; it is found once its keys are added."""
        self._texts.add(text, place)
        return self._texts.count - 1

    def add_keys(self, first: int, keys: TextKeys) -> None:
        """Let texts be found, those from the number `first` on, by their keys in their order."""
        count = len(keys.buckets)
        if not count:
            return
        self.index.add(keys.buckets)
        if self.threshold is None:
            return
        while first + count > len(self._sketches):
            self._sketches = np.concatenate([self._sketches, np.zeros_like(self._sketches)])
        self._sketches[first : first + count] = keys.sketches

    def candidates(self, keys: TextKeys) -> dict[int, tuple[dict[int, int], dict[int, int]]]:
        """Return, for each text that shares keys with earlier ones, how many it shares with each: by number, and by
        place within `keys`.
        """
        shared = self.shared(keys)
        known, among = _by_row(shared.known), _by_row(shared.among)
        return {row: (known.get(row, {}), among.get(row, {})) for row in known.keys() | among.keys()}

    def shared(self, keys: TextKeys) -> Shared:
        """Return the same as arrays, and where there may be more."""
        rows, others, crowded = self.index.find(keys.buckets)
        if self.threshold is not None:
            rows, others = self._alike(keys.sketches, self._sketches, rows, others)
        among = _counted(*self._alike(keys.sketches, keys.sketches, *_within(keys.buckets)))
        return Shared(_counted(rows, others), among, crowded)

    def ordered(self, shared: Mapping[int, int]) -> list[int]:
        """Order candidates by how many keys they share, the most first, as many as are looked at."""
        candidates = sorted(shared, key=lambda number: (-shared[number], number))
        if len(candidates) > MOST_CHECKED:
            self.unchecked += 1
        return candidates[:MOST_CHECKED]

    def text(self, number: int) -> str:
        """Return a text by its number."""
        return self._texts.text(number)

    def place(self, number: int) -> str:
        """Return where a text stands: its file and line."""
        return self._texts.place(number)

    def similarity(self, ngrams: set[str], text: str, earlier: str) -> float:
        """Return the Jaccard similarity of different texts, the first as n-grams; 0 where it is certainly too low."""
        # Texts shorter than a shingle are the same or not similar at all.
        if self.threshold is None or min(len(text), len(earlier)) < self.shingle:
            return 0.0
        if at_most(ngrams, earlier, self.shingle) < self.threshold:
            return 0.0
        # Equal sets of different texts are near, not the same.
        return min(jaccard(ngrams, ngram_set(earlier, self.shingle)), BELOW_SAME)

    def close(self) -> None:
        """Delete the texts."""
        self._texts.close()

    def _alike(
        self, one: np.ndarray, other: np.ndarray, rows: np.ndarray, others: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs whose sketches differ in no more bits than those of near texts."""
        alike = np.bitwise_count(one[rows] ^ other[others]) <= self._unequal
        return rows[alike], others[alike]


def places_of_keys(buckets: UInt32[np.ndarray, "rows keys"]) -> UInt64[np.ndarray, "rows keys"]:
    """Put each key's place before it, so that keys in different places differ."""
    return buckets | (np.arange(buckets.shape[1], dtype=np.uint64) << np.uint64(32))


def _within(buckets: UInt32[np.ndarray, "rows keys"]) -> tuple[np.ndarray, np.ndarray]:
    """Find pairs of (row, earlier row) of the same batch that share a key, once for each such key."""
    columns = buckets.shape[1]
    flat = places_of_keys(buckets).reshape(-1)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    rows: list[np.ndarray] = []
    others: list[np.ndarray] = []
    # Equal keys stand side by side, so that those of a pair are 1, 2, ... places apart.
    for apart in range(1, LONGEST_CHAIN + 1):
        same = np.flatnonzero(ordered[apart:] == ordered[:-apart])
        if not len(same):
            break
        rows.append(order[same + apart] // columns)
        others.append(order[same] // columns)
    nothing = [np.zeros(0, np.int64)]
    return np.concatenate(rows or nothing), np.concatenate(others or nothing)


def _counted(rows: np.ndarray, others: np.ndarray) -> SharedKeys:
    """Count how often each other stands beside each row."""
    # Both in one number: sorting those is many times faster than sorting pairs.
    pairs, counts = np.unique((rows.astype(np.int64) << 32) | others, return_counts=True)
    return pairs >> 32, pairs & 0xFFFFFFFF, counts


def _by_row(pairs: SharedKeys) -> dict[int, dict[int, int]]:
    found: dict[int, dict[int, int]] = {}
    for row, other, count in zip(*(side.tolist() for side in pairs), strict=True):
        found.setdefault(row, {})[other] = count
    return found

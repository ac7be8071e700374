"""Which rows go where: by a hash of their prompt, so that the choice needs no memory and no order."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

BINS = 1 << 12
"""Parts of the hash's range that are counted, to find where a quota ends."""


def prompt_key(text: str) -> int:
    """Hash a text in its normal form to 64 bits; rows with the same prompt have the same key."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def place_of(key: int, seed: int, purpose: str) -> float:
    """Draw a number in [0, 1) by key, seed and purpose, independent between purposes."""
    drawn = hashlib.blake2b(f"{seed} {purpose} {key}".encode(), digest_size=8).digest()
    return (int.from_bytes(drawn) >> 11) / (1 << 53)


def split_of(place: float, shares: Sequence[float]) -> int:
    """Find the part whose interval of the shares' sum holds a place in [0, 1)."""
    ends = np.cumsum(shares) / sum(shares)
    return min(int(np.searchsorted(ends, place, side="right")), len(shares) - 1)


def quotas(counts: Mapping[str, int], shares: Mapping[str, float], rows: int | None) -> dict[str, int]:
    """Count the rows of each class in a sample: by the shares where there are enough, else all of them.

    Without `rows`, as many as the shares allow, so that no class that has rows falls short.
    """
    whole = sum(shares.values())
    wanted = {name: share / whole for name, share in shares.items() if share > 0}
    if rows is None:
        available = [counts.get(name, 0) / share for name, share in wanted.items() if counts.get(name, 0)]
        rows = int(min(available, default=0) + 1e-9)
    return {name: min(counts.get(name, 0), round(share * rows)) for name, share in wanted.items()}


@dataclass
class PlaceCounts:
    """Counts of rows by class and part of [0, 1) in which they have their place: they cut a sample off exactly."""

    bins: dict[str, Int64[np.ndarray, " bins"]]

    @classmethod
    def empty(cls) -> "PlaceCounts":
        """Start without rows."""
        return cls({})

    def add(self, name: str, place: float) -> None:
        """Count a row."""
        if name not in self.bins:
            self.bins[name] = np.zeros(BINS, np.int64)
        self.bins[name][int(place * BINS)] += 1

    @property
    def totals(self) -> dict[str, int]:
        """Rows of each class."""
        return {name: int(counts.sum()) for name, counts in self.bins.items()}


class Sampler:
    """Takes an exact number of rows of each class, those of the smallest places; one part is taken in order."""

    def __init__(self, counted: PlaceCounts, wanted: Mapping[str, int]) -> None:
        self._whole: dict[str, int] = {}
        self._left: dict[str, int] = {}
        for name, count in wanted.items():
            sums = np.cumsum(counted.bins[name]) if name in counted.bins else np.zeros(1, np.int64)
            full = int(np.searchsorted(sums, count, side="right"))
            self._whole[name] = full
            self._left[name] = count - (int(sums[full - 1]) if full else 0)

    def takes(self, name: str, place: float) -> bool:
        """Tell whether a row is in the sample; to be asked once for each row."""
        if name not in self._whole:
            return False
        part = int(place * BINS)
        if part == self._whole[name] and self._left[name] > 0:
            self._left[name] -= 1
            return True
        return part < self._whole[name]

"""MinHash signatures and the keys under which near duplicates meet (Broder 1997; banding by Leskovec et al.)."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt32, UInt64

from rlhf_ray.data.cleaning.characters import Characters
from rlhf_ray.data.cleaning.ngrams import NGrams, mix, ngrams_of

BANDS = 16
MISSED = 1e-3
"""Pairs exactly at the threshold that may share no band; at 0.1 above it they are a thousandth of those."""
SKETCH_DEVIATIONS = 5.0
"""Standard deviations from the expected number of unequal bits at which a candidate is refused unseen."""
_CHUNK = 1 << 16
"""N-grams hashed at a time, so that they stay in the cache."""


def rows_of_band(threshold: float) -> int:
    """Count the hashes of a band: the most that miss a pair at the threshold with probability below `MISSED`.

    A pair of Jaccard similarity J shares none of b bands of r hashes with probability (1 - J^r)^b.
    """
    share = 1 - MISSED ** (1 / BANDS)
    return max(1, int(math.log(share) / math.log(threshold))) if threshold < 1 else 1


def shingles(texts: Sequence[str], length: int) -> NGrams:
    """Return the n-grams of texts, as compared for near duplicates."""
    return ngrams_of(Characters.of(texts), length)


def signatures(ngrams: NGrams, hashes: int) -> UInt64[np.ndarray, "texts hashes"]:
    """Return the smallest of each text's n-grams under each of several hash functions."""
    generator = np.random.Generator(np.random.PCG64(0x5EED))
    factors = generator.integers(0, 1 << 63, hashes, np.uint64) * np.uint64(2) + np.uint64(1)
    shifts = generator.integers(0, 1 << 63, hashes, np.uint64)
    result = np.empty((hashes, len(ngrams.offsets) - 1), np.uint64)
    bounds = np.searchsorted(ngrams.offsets, np.arange(0, ngrams.offsets[-1], _CHUNK), side="left")
    cuts = np.unique(np.append(bounds, len(ngrams.offsets) - 1))
    for first, last in itertools.pairwise(cuts):
        begin = ngrams.offsets[first]
        part = ngrams.hashes[begin : ngrams.offsets[last]]
        starts = ngrams.offsets[first:last] - begin
        for function in range(hashes):
            result[function, first:last] = np.minimum.reduceat(part * factors[function] + shifts[function], starts)
    return result.T


def band_keys(smallest: UInt64[np.ndarray, "texts hashes"]) -> UInt32[np.ndarray, "texts bands"]:
    """Make keys of texts from their signatures; two share one with the probability that `rows_of_band` states."""
    bands = smallest.reshape(len(smallest), BANDS, -1)
    keys = np.broadcast_to(np.arange(1, BANDS + 1, dtype=np.uint64), bands.shape[:2])
    for row in range(bands.shape[2]):
        keys = mix(keys * np.uint64(0x9E3779B97F4A7C15) + bands[:, :, row])
    return (keys >> np.uint64(32)).astype(np.uint32)


def sketches(smallest: UInt64[np.ndarray, "texts hashes"]) -> UInt64[np.ndarray, " texts"]:
    """Take one bit of each of a text's hashes, up to 64 (b-bit MinHash, Li and König 2010)."""
    found = np.zeros(len(smallest), np.uint64)
    for place in range(min(smallest.shape[1], 64)):
        found |= (mix(smallest[:, place]) >> np.uint64(63)) << np.uint64(place)
    return found


def most_unequal_bits(threshold: float) -> int:
    """Count the bits in which sketches of texts at the threshold differ at most, but for one pair in a million.

    Each bit differs with probability (1 - J) / 2: half the hashes that differ.
    """
    bits = min(BANDS * rows_of_band(threshold), 64)
    share = (1 - threshold) / 2
    return math.ceil(bits * share + SKETCH_DEVIATIONS * math.sqrt(bits * share * (1 - share)))


def jaccard(one: set[str], other: set[str]) -> float:
    """Return the exact Jaccard similarity of the sets of n-grams of two texts."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def ngram_set(text: str, length: int) -> set[str]:
    """Return the n-grams of a text; one that is shorter is its only one."""
    return {text[start : start + length] for start in range(max(len(text) - length + 1, 1))}


def at_most(ngrams: set[str], text: str, length: int) -> float:
    """Bound the Jaccard similarity of a set of n-grams and a text from above, at a fraction of its cost.

    Only some n-grams of the text are looked up, those that do not overlap. If d different ones of them are not in the
    set A, and the text has n n-grams, then at most n - d are shared and the union has at least |A| + d.
    """
    looked_up = {text[start : start + length] for start in range(0, len(text) - length + 1, length)}
    missing = len(looked_up - ngrams)
    return max(len(text) - length + 1 - missing, 0) / (len(ngrams) + missing)

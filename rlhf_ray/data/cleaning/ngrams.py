"""Hashed n-grams of characters of many texts at once."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, UInt64

from rlhf_ray.data.cleaning.characters import Characters

_PRIME = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mix(values: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Spread numbers over 64 bits, one to one (the finalizer of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True, slots=True)
class NGrams:
    """Hashes of the n-grams of several texts, end to end; each text has at least one."""

    hashes: UInt64[np.ndarray, " ngrams"]
    offsets: Int64[np.ndarray, " texts+1"]


def ngrams_of(characters: Characters, length: int) -> NGrams:
    """Hash all n-grams of `length` characters; a shorter text is one n-gram."""
    lengths = characters.lengths
    counts = np.maximum(lengths - length + 1, 1)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    # Zeros, which no character becomes, after the last text, so that every place begins an n-gram.
    codes = np.zeros(len(characters.codes) + length, np.uint64)
    codes[: len(characters.codes)] = characters.codes
    codes[: len(characters.codes)] += np.uint64(1)
    everywhere = np.full(len(characters.codes) + 1, np.uint64(length))
    for step in range(length):
        everywhere *= _PRIME
        everywhere += codes[step : step + len(everywhere)]
    starts = np.arange(offsets[-1]) + np.repeat(characters.offsets[:-1] - offsets[:-1], counts)
    hashes = everywhere[starts]
    for text in np.flatnonzero(lengths < length):
        hashes[offsets[text]] = _short(codes[characters.offsets[text] : characters.offsets[text + 1]], length)
    return NGrams(mix(hashes), offsets)


def _short(codes: UInt64[np.ndarray, " characters"], length: int) -> np.uint64:
    """Hash a text that is shorter than an n-gram, filled up with zeros."""
    value = length
    for step in range(length):
        value = (value * int(_PRIME) + (int(codes[step]) if step < len(codes) else 0)) % (1 << 64)
    return np.uint64(value)


def repeated_share(ngrams: NGrams) -> np.ndarray:
    """Return the share of each text's n-grams that stood in it before."""
    counts = np.diff(ngrams.offsets)
    texts = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    # Sorted by text, and within it by as much of the hash as 64 bits leave room for.
    bits = np.uint64(max(len(counts).bit_length(), 1))
    keys = np.sort((texts << (np.uint64(64) - bits)) | (ngrams.hashes >> bits))
    again = keys[1:][keys[1:] == keys[:-1]] >> (np.uint64(64) - bits)
    return np.bincount(again.astype(np.int64), minlength=len(counts)) / counts

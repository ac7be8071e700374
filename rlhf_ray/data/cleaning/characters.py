"""Kinds of characters in many texts at once."""

import sys
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from jaxtyping import Int64, UInt8, UInt32

KINDS = (
    "other",
    "space",
    "digit",
    "punctuation",
    "symbol",
    "broken",
    "letter",
    "latin",
    "han",
    "kana",
    "hangul",
    "cyrillic",
    "arabic",
    "thai",
    "devanagari",
)
"""Each character is of one kind; `letter` is a letter of any script that is not named."""
LETTERS = KINDS[KINDS.index("letter") :]

_SCRIPTS = {
    "latin": [(0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)],
    "han": [
        (0x2E80, 0x2FDF),
        (0x3005, 0x3007),
        (0x3400, 0x4DBF),
        (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF),
        (0x20000, 0x3FFFF),
    ],
    "kana": [(0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)],
    "hangul": [(0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)],
    "cyrillic": [(0x400, 0x52F)],
    "arabic": [(0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC)],
    "thai": [(0xE00, 0xE7F)],
    "devanagari": [(0x900, 0x97F)],
}
_CATEGORIES = {"P": "punctuation", "S": "symbol", "Z": "space", "N": "digit", "L": "letter", "M": "letter"}
_ASSIGNED = 0x34000
"""Above are no characters but private ones and marks of variants."""
_BLANKS = "\t\n\r\x0b\x0c"


@cache
def _table() -> UInt8[np.ndarray, " code_points"]:
    """Make the table of each code point's kind; once, in a tenth of a second."""
    place = {kind: number for number, kind in enumerate(KINDS)}
    kinds = {category: place[kind] for category, kind in _CATEGORIES.items()}
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    table[:_ASSIGNED] = [kinds.get(unicodedata.category(chr(code))[0], 0) for code in range(_ASSIGNED)]
    for script, ranges in _SCRIPTS.items():
        for first, last in ranges:
            part = table[first : last + 1]
            part[part == place["letter"]] = place[script]
    # Letters such as 〇 and half-width sound marks are not of category L.
    table[[0x3007, 0x30FC]] = [place["han"], place["kana"]]
    table[[ord(blank) for blank in _BLANKS]] = place["space"]
    for first, last in ((0, 8), (0xE, 0x1F), (0x7F, 0x9F), (0xD800, 0xF8FF), (0xFFF9, 0xFFFD), (0xF0000, 0x10FFFF)):
        table[first : last + 1] = place["broken"]
    table[0x85] = place["space"]
    return table


@dataclass(frozen=True)
class Characters:
    """The characters of several texts, end to end."""

    codes: UInt32[np.ndarray, " characters"]
    offsets: Int64[np.ndarray, " texts+1"]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Characters":
        """Pack texts; each must be valid Unicode."""
        lengths = np.array([0, *map(len, texts)], np.int64)
        codes = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        return cls(codes, np.cumsum(lengths))

    @property
    def lengths(self) -> Int64[np.ndarray, " texts"]:
        """Characters of each text."""
        return np.diff(self.offsets)

    @cached_property
    def kinds(self) -> UInt8[np.ndarray, " characters"]:
        """Kind of each character, as its place in `KINDS`."""
        return _table()[self.codes]

    @cached_property
    def counts(self) -> Int64[np.ndarray, "texts kinds"]:
        """Characters of each kind in each text."""
        texts = np.repeat(np.arange(len(self.offsets) - 1), self.lengths)
        flat = np.bincount(texts * len(KINDS) + self.kinds, minlength=(len(self.offsets) - 1) * len(KINDS))
        return flat.reshape(-1, len(KINDS))

    def count(self, *kinds: str) -> Int64[np.ndarray, " texts"]:
        """Count the characters of these kinds in each text."""
        return self.counts[:, [KINDS.index(kind) for kind in kinds]].sum(axis=1)

    def longest_run(self, *kinds: str) -> Int64[np.ndarray, " texts"]:
        """Count the most repetitions of one character of these kinds in a row, in each text."""
        wanted = np.zeros(len(KINDS), bool)
        wanted[[KINDS.index(kind) for kind in kinds]] = True
        begins = np.ones(len(self.codes) + 1, bool)
        begins[1:-1] = self.codes[1:] != self.codes[:-1]
        begins[self.offsets] = True
        places = np.flatnonzero(begins)
        lengths = np.where(wanted[self.kinds[places[:-1]]], np.diff(places), 0)
        texts = np.searchsorted(self.offsets, places[:-1], side="right") - 1
        longest = np.zeros(len(self.offsets) - 1, np.int64)
        np.maximum.at(longest, texts, lengths)
        return longest

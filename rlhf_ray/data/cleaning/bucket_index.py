"""Where rows with the same key are found: a hash table of chains in flat arrays, 12 to 16 bytes an entry."""

import numpy as np
from jaxtyping import Int32, Int64, UInt32

FIRST_ENTRIES = 1 << 16
MOST_ENTRIES = 2**31 - 1
LONGEST_CHAIN = 256
"""Rows looked at under one key, the newest; boilerplate that thousands share would else cost their square."""


class IndexFull(Exception):
    """There are more rows than the index can number."""


class BucketIndex:
    """Rows by their keys. Row r's entries are r x keys + 0, 1, ...; each knows the entry before it in its chain."""

    def __init__(self, keys: int) -> None:
        """Make an index of rows with `keys` keys each."""
        self.keys = keys
        self.entries = 0
        self.cut_chains = 0
        """Keys of which only the newest rows were looked at."""
        self._key = np.empty(FIRST_ENTRIES, np.uint32)
        self._before = np.empty(FIRST_ENTRIES, np.int32)
        self._heads = np.full(FIRST_ENTRIES, -1, np.int32)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return self._key.nbytes + self._before.nbytes + self._heads.nbytes

    def find(
        self, keys: UInt32[np.ndarray, "rows keys"]
    ) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], Int64[np.ndarray, " crowded"]]:
        """Find pairs of (position in `keys`, earlier row) that share a key in one place, once for each such key.

        Also which keys, counted through `keys`, have as many rows as are looked at, or more.
        """
        flat = keys.reshape(-1)
        here = np.arange(len(flat))
        entry = self._heads[self._slots(flat)]
        left = np.full(len(flat), LONGEST_CHAIN)
        asked: list[np.ndarray] = []
        met: list[np.ndarray] = []
        while len(here):
            going = entry >= 0
            here, entry = here[going], entry[going]
            same = (self._key[entry] == flat[here]) & (entry % self.keys == here % self.keys)
            asked.append(here[same] // self.keys)
            met.append(entry[same].astype(np.int64) // self.keys)
            left[here[same]] -= 1
            entry = self._before[entry]
            ended = left[here] == 0
            self.cut_chains += int((ended & (entry >= 0)).sum())
            here, entry = here[~ended], entry[~ended]
        nothing = [np.zeros(0, np.int64)]
        return np.concatenate(asked or nothing), np.concatenate(met or nothing), np.flatnonzero(left == 0)

    def rows_of(self, place: int, key: int) -> list[int]:
        """List all rows with this key in this place, the newest first."""
        rows = []
        entry = int(self._heads[self._slots(np.array([key], np.uint32))[0]])
        while entry >= 0:
            if entry % self.keys == place and self._key[entry] == key:
                rows.append(entry // self.keys)
            entry = int(self._before[entry])
        return rows

    def add(self, keys: UInt32[np.ndarray, "rows keys"]) -> None:
        """Add further rows, in their order.

        Raises:
            IndexFull: there are too many.
        """
        flat = keys.reshape(-1)
        if self.entries + len(flat) > MOST_ENTRIES:
            raise IndexFull(f"the duplicate index holds {MOST_ENTRIES // self.keys:,} rows at most")
        self._make_room(self.entries + len(flat))
        first = self.entries
        self.entries += len(flat)
        self._key[first : self.entries] = flat
        self._chain(first)

    def _slots(self, keys: UInt32[np.ndarray, " entries"]) -> Int64[np.ndarray, " entries"]:
        bits = len(self._heads).bit_length() - 1
        spread = keys * np.uint32(0x9E3779B1)
        return (spread >> np.uint32(32 - bits)).astype(np.int64)

    def _make_room(self, entries: int) -> None:
        if entries <= len(self._key):
            return
        size = len(self._key)
        while size < entries:
            size *= 2
        grown = np.empty(size, np.uint32)
        grown[: self.entries] = self._key[: self.entries]
        self._key = grown
        self._before = np.empty(size, np.int32)
        self._heads = np.full(size, -1, np.int32)
        for first in range(0, self.entries, FIRST_ENTRIES):
            self._chain(first, min(first + FIRST_ENTRIES, self.entries))

    def _chain(self, first: int, last: int | None = None) -> None:
        """Hang entries before the heads of their chains, in their order."""
        last = self.entries if last is None else last
        slots = self._slots(self._key[first:last])
        order = np.argsort(slots, kind="stable")
        sorted_slots = slots[order]
        entries = (first + order).astype(np.int32)
        begins = np.ones(len(order), bool)
        begins[1:] = sorted_slots[1:] != sorted_slots[:-1]
        ends = np.append(begins[1:], True) if len(order) else begins
        before: Int32[np.ndarray, " entries"] = np.empty(len(order), np.int32)
        before[1:] = entries[:-1]
        before[begins] = self._heads[sorted_slots[begins]]
        self._before[entries] = before
        self._heads[sorted_slots[ends]] = entries[ends]

"""Rows that cannot be used: counted, shown, and past a threshold the end of the job."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.config.errors import BadInput

SHOWN = 3
"""Examples shown of each kind of trouble; the counts say the rest."""


class BadRow(Exception):
    """One row cannot be used; the message says why and what to do, its reader adds the place."""


@dataclass(frozen=True, slots=True)
class Place:
    """Place of a row in its file."""

    file: str
    line: int
    """From 1."""
    unit: str = "line"
    """`line` of a text file, or `row` where lines mean nothing (Parquet, hub)."""

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.unit == "line" else f"{self.file}, {self.unit} {self.line}"


@dataclass
class ReadReport:
    """Counts of a data set's rows: read, dropped, and why."""

    source: str
    allowed_share: float
    """Share of bad rows past which `check` raises."""
    rows: int = 0
    """Rows seen, good and bad."""
    bad: int = 0
    """Rows that cannot be read."""
    examples: list[tuple[Place, str]] = field(default_factory=list)
    """The first of those, with the reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that can be read and are not used, by reason (too long, ...)."""
    shortened: Counter[str] = field(default_factory=Counter)
    """Rows that are used in part, by reason."""
    split: int = 0
    """Conversations that became a sequence for each answer."""

    unread: dict[str, None] = field(default_factory=dict)
    """Columns that the job does not read, in the order in which they came."""
    handed_on: bool = False
    """Whether those go to reward functions and into the output."""
    keys: dict[str, None] = field(default_factory=dict)
    """Keys of messages beside role and content."""
    read_keys: set[str] = field(default_factory=set)
    """Those that the chat template reads."""

    @property
    def used(self) -> int:
        """Rows that the job gets."""
        return self.rows - self.bad - self.left_out.total()

    def add_bad(self, place: Place, message: str) -> None:
        """Count a row that cannot be read; the first are remembered as examples."""
        self.bad += 1
        if len(self.examples) < SHOWN:
            self.examples.append((place, message))

    def pass_over(self, columns: Mapping[str, Any]) -> None:
        """Remember the columns of a row that nobody reads, and that hold something."""
        self.unread.update((name, None) for name, value in columns.items() if value is not None and value != "")

    def check(self) -> None:
        """Stop if too many rows are bad or none is left.

        Raises:
            BadInput: names the first bad rows with their places.
        """
        if self.bad > self.allowed_share * self.rows:
            count = f"{self.bad} of {self.rows} rows" if self.rows > 1 else "the only row"
            raise BadInput(
                f"{self.source}: {count} cannot be used, more than bad_rows {self.allowed_share:g} allows:\n"
                + "\n".join(self._examples())
            )
        if not self.rows:
            raise BadInput(f"{self.source}: holds no rows")
        if not self.used:
            why = [f"left out: {_rows(count)}: {reason}" for reason, count in self.left_out.items()]
            if self.bad:
                why.append("\n".join([f"{_rows(self.bad)} cannot be used:", *self._examples()]))
            raise BadInput(f"{self.source}: no row is left to use; {'; '.join(why)}")

    def lines(self) -> Iterator[str]:
        """Say what was read and what was not, for the console and the log."""
        yield f"{self.source}: {self.used} of {self.rows} rows used"
        if self.unread:
            names = ", ".join(self.unread)
            handed = "columns that only reward functions and the output get" if self.handed_on else "columns not read"
            yield f"  {handed}: {names}"
        if unread := [key for key in self.keys if key not in self.read_keys]:
            yield f"  keys of messages not read: {', '.join(unread)}"
        yield from (f"  {_rows(count)} left out: {reason}" for reason, count in self.left_out.items())
        yield from (f"  {_rows(count)} shortened: {reason}" for reason, count in self.shortened.items())
        if self.split:
            yield (
                f"  {_rows(self.split)} became a sequence for each answer: the chat template renders earlier answers "
                "otherwise than they were written"
            )
        if self.bad:
            yield f"  {_rows(self.bad)} cannot be used:"
            yield from self._examples()

    def _examples(self) -> Iterator[str]:
        yield from (f"  {place}: {message}" for place, message in self.examples)
        if self.bad > SHOWN:
            yield f"  and {self.bad - SHOWN} more"


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"

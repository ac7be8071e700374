"""Cleaned batches in their order: duplicates out, the rest on disk until it is known what the sample takes."""

import json
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.jobs.cleaning import PARQUET, DataJobConfig
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.cleaning.bucket_index import IndexFull
from rlhf_ray.data.cleaning.cleaner import CLASS_COLUMN, Cleaned, Kept, Removed, repetition
from rlhf_ray.data.cleaning.duplicates import Duplicate, DuplicateFinder
from rlhf_ray.data.cleaning.prompt_groups import PromptGroups
from rlhf_ray.data.cleaning.selection import PlaceCounts, place_of
from rlhf_ray.data.cleaning.texts import prompt_alone
from rlhf_ray.data.column_types import ColumnTypes, MixedColumn
from rlhf_ray.data.file_formats import Row


class PartTables:
    """Types of rows, and of prompts alone, as far as parts want them; what no type holds shows with its batch.

    Which part a row goes to is not known yet, so all parts of the same content have the same columns.
    """

    def __init__(self, config: DataJobConfig) -> None:
        self._types: dict[str, ColumnTypes] = {
            split.content: ColumnTypes() for name, split in config.splits.items() if name.endswith(PARQUET)
        }

    def add(self, kept: Sequence[Kept]) -> None:
        """Take rows that stay.

        Raises:
            BadInput: one is of a type that the column has not; names its place and the column.
        """
        if not self._types:
            return
        rows = [json.loads(row.line) for row in kept]
        for content, types in self._types.items():
            told = rows if content == "rows" else [_prompt_row(row) for row in rows]
            try:
                types.add(told)
            except MixedColumn:
                _one_by_one(types, kept, told)

    def schema(self, content: str) -> Any:
        """Return the columns of a part with this content, as a `pyarrow.Schema`."""
        return self._types[content].schema()


def _one_by_one(types: ColumnTypes, kept: Sequence[Kept], rows: Sequence[Row]) -> None:
    """Add rows, and name the first that does not fit those before it."""
    for one, row in zip(kept, rows, strict=True):
        try:
            types.add([row])
        except MixedColumn as error:
            raise BadInput(
                f"{one.place}: Parquet cannot hold column {error.column!r}, whose values differ in type ({error}); "
                "name the part .jsonl"
            ) from None


def prompt_row(row: Row, class_name: str) -> Row:
    """Return a row of what a policy is asked, with its class if it has one.

    Raises:
        BadRow: the row has no prompt.
    """
    return {"prompt": prompt_alone(row), **({CLASS_COLUMN: class_name} if class_name else {})}


def _prompt_row(row: Row) -> Row:
    try:
        return prompt_row(row, str(row.get(CLASS_COLUMN, "")))
    except BadRow:
        # It will be left out and counted.
        return {}


AUDIT = "audit.jsonl"
HEADER = struct.Struct("<QIHI")
"""Key and number of the prompt, number of the class, bytes of the line."""


@dataclass(frozen=True, slots=True)
class Sieved:
    """A row that stays."""

    line: bytes
    prompt_key: int
    group_key: int
    """The same for all rows whose prompts are near."""
    class_name: str


class Sieve:
    """Keeps the first of all rows that say the same. Memory grows by the indexes of rows and prompts alone."""

    def __init__(self, config: DataJobConfig, folder: Path) -> None:
        """Sieve by a config; `folder` is that of the audit, and of temporary files."""
        duplicates = config.duplicates
        self.finder = None if duplicates is None else DuplicateFinder(duplicates.shingle, duplicates.near, str(folder))
        near = config.near_prompts_to_group
        self.groups = None if near is None else PromptGroups(config.prompt_shingle, near, str(folder))
        self.tables = PartTables(config)
        self.places = PlaceCounts.empty()
        self.kept = 0
        self._seed = config.seed
        self._classes: dict[str, int] = {}
        self._audit: IO[bytes] = (folder / AUDIT).open("wb")
        # Open as long as the object; the system deletes it if the process dies.
        self._rows: IO[bytes] = tempfile.TemporaryFile(dir=folder, prefix="rows")  # noqa: SIM115

    def add(self, source: str, batch: Cleaned) -> list[Removed]:
        """Take the next batch; returns all of its rows that were removed, in their order.

        Raises:
            RlhfError: there are more rows than the duplicate index can hold.
            BadInput: a row is of types that a Parquet part cannot hold.
        """
        repeats = self._repeats(batch)
        stay = [place for place, duplicate in enumerate(repeats) if duplicate is None]
        kept = [batch.kept[place] for place in stay]
        self.tables.add(kept)
        for row, number in zip(kept, self._prompt_numbers(batch, stay), strict=True):
            self._keep(row, number)
        again = [
            repetition(row, duplicate)
            for row, duplicate in zip(batch.kept, repeats, strict=True)
            if duplicate is not None
        ]
        removed = sorted([*batch.bad, *batch.removed, *again], key=lambda one: one.number)
        self._audit.writelines(one.line(source) for one in removed)
        return removed

    def _repeats(self, batch: Cleaned) -> list[Duplicate | None]:
        """Find what each row repeats, if it does."""
        if self.finder is None or batch.keys is None:
            return [None] * len(batch.kept)
        texts = [kept.compared for kept in batch.kept]
        places = [str(kept.place) for kept in batch.kept]
        try:
            return self.finder.filter(texts, places, batch.keys)
        except IndexFull as error:
            raise RlhfError(f"{error}; clean the sources in several jobs, or set duplicates.near to null") from None

    def _prompt_numbers(self, batch: Cleaned, stay: list[int]) -> list[int]:
        """Return numbers of the prompts of rows that stay; zeros where near prompts need not be together."""
        if self.groups is None or batch.prompt_keys is None:
            return [0] * len(stay)
        kept = [batch.kept[place] for place in stay]
        prompts, keys = [row.prompt for row in kept], [row.prompt_key for row in kept]
        try:
            return self.groups.add(prompts, keys, batch.prompt_keys.of(stay))
        except IndexFull as error:
            raise RlhfError(f"{error}; set near_prompts to null") from None

    def _keep(self, kept: Kept, prompt: int) -> None:
        number = self._classes.setdefault(kept.class_name, len(self._classes))
        self._rows.write(HEADER.pack(kept.prompt_key, prompt, number, len(kept.line)))
        self._rows.write(kept.line)
        self.places.add(kept.class_name, place_of(kept.prompt_key, self._seed, "sample"))
        self.kept += 1

    def rows(self) -> Iterator[Sieved]:
        """Yield all rows that stay, in their order."""
        names = list(self._classes)
        self._rows.seek(0)
        while header := self._rows.read(HEADER.size):
            key, prompt, number, size = HEADER.unpack(header)
            group = key if self.groups is None else self.groups.key(prompt)
            yield Sieved(self._rows.read(size), key, group, names[number])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._audit.close()
        self._rows.close()
        if self.finder is not None:
            self.finder.near.close()
        if self.groups is not None:
            self.groups.close()

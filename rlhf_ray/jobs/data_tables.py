"""Column types of the parts that `rlhf data` writes as Parquet, gathered while rows come."""

import json
from collections.abc import Sequence
from typing import Any

from rlhf_ray.config.cleaning import PARQUET, DataJobConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.cleaning.cleaner import CLASS_COLUMN, Kept
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
        """Columns of a part with this content, as a `pyarrow.Schema`."""
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
    """What a policy is asked, with its class if it has one.

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

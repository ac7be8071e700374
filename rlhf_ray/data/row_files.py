"""Rows out to a file as they come: JSON lines, Parquet, or rank lists."""

import datetime
import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import IO, Any, Protocol, Self

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.cleaning.texts import joined
from rlhf_ray.data.column_types import ColumnTypes, MixedColumn, fitted
from rlhf_ray.data.file_formats import Row, escape
from rlhf_ray.data.records import Ranking

ROW_GROUP = 1024
"""Rows that Parquet keeps together; so many wait in memory."""

COLUMN_TYPES = {str: "string", int: "int64", float: "float64"}
"""Parquet's types of the columns that a job adds."""
TIES = "rank lists hold no ties; write .jsonl"
"""Why a ranking is left out."""


class RowWriter(Protocol):
    """Takes rows in their order. Leaving the block completes the file; the stream itself belongs to the caller."""

    def write(self, row: Row) -> None:
        """Append a row."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_rows(stream: IO[bytes], path: str, known: Sequence[Row], added: Mapping[str, type]) -> RowWriter:
    """Open a writer for the format that the suffix of `path` names.

    Args:
        stream: where the bytes go.
        path: of the file, for its suffix and for errors.
        known: columns of the rows to come that are known already; a value that the format cannot hold shows now, and
            not after hours of work.
        added: columns that are not known yet, with str, int or float; they may be None.

    Raises:
        BadInput: the format cannot hold a known column.
    """
    if PurePath(path).suffix == ".parquet":
        return ParquetRows(stream, _schema(path, known, added))
    return _JsonRows(stream, path, known)


def set_apart(columns: Mapping[str, Any], taken: Collection[str]) -> Row:
    """Return the data set's columns for beside a job's; one of the same name is kept as `original_NAME`."""
    kept: Row = {}
    for name, value in columns.items():
        while name in taken or name in kept:
            name = f"original_{name}"
        kept[name] = value
    return kept


class _JsonRows:
    def __init__(self, stream: IO[bytes], path: str, known: Sequence[Row]) -> None:
        self._stream = stream
        for row in known:
            try:
                json_line(row)
            except UnicodeEncodeError as error:
                raise _not_unicode(path, error) from None
            except (TypeError, ValueError) as error:
                raise BadInput(f"output: {path}: JSON lines cannot hold these rows ({error}); write .parquet") from None

    def write(self, row: Row) -> None:
        self._stream.write(json_line(row))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.flush()


def json_line(row: Row) -> bytes:
    """Return a row as a line of JSON.

    Raises:
        TypeError: JSON has no form for a value.
        ValueError: a text is not valid Unicode, or the row holds itself.
    """
    return json.dumps(row, ensure_ascii=False, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """Convert what hub data sets hold beside JSON's own types."""
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a value is {type(value).__name__}")


def _not_unicode(path: str, error: UnicodeEncodeError) -> BadInput:
    """Explain that no format holds half of a surrogate pair, which JSON can spell."""
    broken = ascii(error.object[error.start])
    return BadInput(f"output: {path}: a text of these rows has {broken}, which is not valid Unicode; mend the data")


def _schema(path: str, known: Sequence[Row], added: Mapping[str, type]) -> Any:
    import pyarrow

    types = ColumnTypes()
    try:
        types.add(known)
    except UnicodeEncodeError as error:
        raise _not_unicode(path, error) from None
    except MixedColumn as error:
        raise BadInput(
            f"output: {path}: Parquet cannot hold column {error.column!r}, whose values differ in type ({error}); "
            "write .jsonl"
        ) from None
    return pyarrow.schema([*types.schema(), *(pyarrow.field(name, COLUMN_TYPES[kind]) for name, kind in added.items())])


class ParquetRows:
    """Writes rows as Parquet; leaving the block completes the file."""

    def __init__(self, stream: IO[bytes] | io.RawIOBase, schema: Any) -> None:
        """Write to a stream of bytes; the `pyarrow.Schema` holds all columns of the rows to come."""
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        self._pyarrow = pyarrow
        self._schema = schema
        self._rows: list[Row] = []
        self._writer: Any = ParquetWriter(stream, schema)

    def write(self, row: Row) -> None:
        """Append a row; columns that it has not are null."""
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        try:
            table = self._pyarrow.Table.from_pylist(self._rows, schema=self._schema)
        except self._pyarrow.ArrowException:
            # Objects without keys, or numbers beside masked ones: seldom, so that most rows need no second look.
            rows = [
                {field.name: fitted(row.get(field.name), field.type) for field in self._schema} for row in self._rows
            ]
            table = self._pyarrow.Table.from_pylist(rows, schema=self._schema)
        self._writer.write_table(table)
        self._rows.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._rows and error[0] is None:
            self._flush()
        self._writer.close()


def has_ties(ranking: Ranking) -> bool:
    """Tell whether two responses have one rank, which no order of texts can say."""
    return len(set(ranking.ranks)) < len(ranking.ranks)


def rank_list_line(ranking: Ranking) -> bytes:
    """Write whole texts, best first: the prompt stands before each answer. For files with `RANK_LIST_HEADER`."""
    order = sorted(range(len(ranking.ranks)), key=lambda place: ranking.ranks[place])
    prompt = joined(ranking.prompt)
    between = "" if isinstance(ranking.prompt, str) else "\n"
    texts = [escape(f"{prompt}{between}{ranking.responses[place]}") for place in order]
    return ("\t".join(texts) + "\n").encode()

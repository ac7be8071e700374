"""One reader for each file format: a byte stream in, rows with their places out."""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, BinaryIO

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow, Place

Row = dict[str, Any]
RawRow = tuple[Place, Row | BadRow]

RANKED_TEXTS = "ranked_texts"
"""Column of the rows of a rank list: whole texts, best first."""
RANK_LIST_HEADER = r"# rank list, best first; escapes: \t \n \\"
"""First line of the rank lists that this project writes."""
_ESCAPES = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
# A carriage return at the end of a line would be read as a part of the line's end.
_UNESCAPES = {"\\\\": "\\", "\\t": "\t", "\\n": "\n", "\\r": "\r"}
_ESCAPED = re.compile(r"\\[\\tnr]")
PLAIN_TEXT = "text"
"""Column of the lines of a text file."""
JSON_IN_CSV = ("messages", "conversations", "responses", "ranks", "grades", "history", "tools", "completions")
"""Columns that hold lists; a CSV cell gives them as JSON."""
MESSAGES_IN_CSV = ("prompt", "completion", "response", "chosen", "rejected", "context")
"""Columns that hold a text, or messages, which a CSV cell gives as JSON."""
KIND_COLUMNS = frozenset(
    {
        *("text", "messages", "prompt", "completion", "response", "completions", "chosen", "rejected"),
        *("responses", "ranks", "system", "tools"),
    }
)
"""Columns that tell of what kind a row is. A table has those of all its rows."""
BEGINNING = 4096
"""Bytes of a file that tell what it holds, whatever its name says."""
MAX_NULS = 0.1
"""Share of NUL bytes in text; each character of an alphabet has one in UTF-16."""
BINARY = {
    b"\x1f\x8b": "is compressed by gzip; let its name end in .gz",
    b"BZh": "is compressed by bzip2; let its name end in .bz2",
    b"\xfd7zXZ": "is compressed by xz; let its name end in .xz",
    b"\x28\xb5\x2f\xfd": "is compressed by zstd; unpack it",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is Parquet; let its name end in .parquet",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"%PDF-": "is a PDF; write its text to a file",
    b"version https://git-lfs": "is a pointer of Git LFS; fetch the file with: git lfs pull",
    b"\xff\xfe\x00\x00": "is UTF-32; convert it with: iconv -f UTF-32 -t UTF-8",
    b"\xff\xfe": "is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
    b"\xfe\xff": "is UTF-16; convert it with: iconv -f UTF-16 -t UTF-8",
}
"""How files begin that are no text in UTF-8, and what to do with them."""
MAX_CELL = 1 << 24
"""Characters of a CSV cell; the library's own limit, 131,072, is less than a long document."""


def read_lines(stream: BinaryIO, file: str) -> Iterator[RawRow]:
    """Read plain text, a row for each line: `{"text": line}`."""
    for place, line in _lines(stream, file):
        yield place, line if isinstance(line, BadRow) else {PLAIN_TEXT: line}


def read_rank_lists(stream: BinaryIO, file: str) -> Iterator[RawRow]:
    """Read lines of texts set apart by tabs, best first: `{"ranked_texts": [...]}`.

    In a file that begins with `RANK_LIST_HEADER` texts are escaped; in any other each character stands for itself.
    """
    escaped = False
    for index, (place, line) in enumerate(_lines(stream, file)):
        if index == 0 and line == RANK_LIST_HEADER:
            escaped = True
        elif isinstance(line, BadRow):
            yield place, line
        else:
            texts = line.split("\t")
            yield place, {RANKED_TEXTS: [unescape(text) for text in texts] if escaped else texts}


def escape(text: str) -> str:
    """Write a text as it stands in a rank list with `RANK_LIST_HEADER`."""
    return text.translate(_ESCAPES)


def unescape(text: str) -> str:
    """Read a text of a rank list with `RANK_LIST_HEADER`; a backslash before any other character stands for itself."""
    return _ESCAPED.sub(lambda found: _UNESCAPES[found[0]], text)


def read_jsonl(stream: BinaryIO, file: str) -> Iterator[RawRow]:
    """Read a JSON object on each line."""
    for place, line in _lines(stream, file):
        yield place, line if isinstance(line, BadRow) else _object(line)


def read_json(stream: BinaryIO, file: str) -> Iterator[RawRow]:
    """Read a JSON list of objects, or an object that holds one such list; lines of objects are understood too."""
    content = stream.read()
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise BadInput(f"{file}: {_not_utf8(error)}") from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from read_jsonl(io.BytesIO(content), file)
            return
        raise BadInput(f"{file}:{error.lineno}: not JSON: {error.msg} (column {error.colno})") from error
    except (RecursionError, ValueError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise BadInput(f"{file}: not JSON that can be read: {reason}") from None
    if isinstance(value, dict):
        lists = [inner for name, inner in value.items() if isinstance(inner, list) and name not in KIND_COLUMNS]
        value = lists[0] if len(lists) == 1 and all(isinstance(row, dict) for row in lists[0]) else [value]
    if not isinstance(value, list):
        raise BadInput(f"{file}: holds {_kind(value)}, not a list of objects")
    for index, row in enumerate(value, start=1):
        yield Place(file, index, "row"), row if isinstance(row, dict) else BadRow(_not_object(row))


def read_csv(stream: BinaryIO, file: str) -> Iterator[RawRow]:
    """Read comma-separated values with a header line."""
    csv.field_size_limit(MAX_CELL)
    # Bytes that are not UTF-8 become surrogates, so that only their own row is bad.
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    reader = csv.reader(text, strict=True)
    try:
        header = next(reader, None)
        if header is None:
            return
        if len(set(header)) != len(header) or not all(name.strip() for name in header):
            raise BadInput(f"{file}:1: the header line names columns twice or not at all: {', '.join(header)}")
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                yield Place(file, line), _record(header, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise BadInput(f"{file}:{reader.line_num}: not CSV: {error}") from error


def read_parquet(stream: BinaryIO, file: str) -> Iterator[RawRow]:
    """Read the rows of a Parquet file, in batches."""
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(stream)
        index = 0
        for batch in table.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                index += 1
                yield Place(file, index, "row"), own_columns(row)
    except pyarrow.ArrowException as error:
        raise BadInput(f"{file}: not a Parquet file that can be read: {str(error).splitlines()[0]}") from error


def own_columns(row: Mapping[str, Any]) -> Row:
    """Return a table's row without the columns that belong to rows of another kind, and are null in this one.

    Nor the keys of messages and tools that belong to others: a table has all of them everywhere.
    """
    kept = {name: value for name, value in row.items() if value is not None or name not in KIND_COLUMNS}
    return {name: _without_nulls(value) if name in KIND_COLUMNS else value for name, value in kept.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


READERS: dict[str, Callable[[BinaryIO, str], Iterator[RawRow]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
    ".txt": read_lines,
    ".tsv": read_rank_lists,
}
"""Readers by the file's suffix."""
COMPRESSED = (".gz", ".bz2", ".xz")
"""Suffixes after those, of compressed files."""


def format_of(file: str) -> str:
    """Return the suffix that names a file's format: `.jsonl` of `rows.jsonl.gz`."""
    path = PurePath(file.lower())
    return PurePath(path.stem).suffix if path.suffix in COMPRESSED else path.suffix


def check_beginning(content: bytes, file: str) -> None:
    """Raise BadInput where the first bytes of a file show that it is not what its name says.

    Args:
        content: at least `BEGINNING` bytes of the file, if it has as many; after decompression.
        file: its name.
    """
    if format_of(file) == ".parquet":
        # Its reader tells that better.
        return
    for mark, problem in BINARY.items():
        if content.startswith(mark):
            raise BadInput(f"{file}: {problem}")
    content = content[:BEGINNING]
    if content.count(0) > MAX_NULS * len(content):
        raise BadInput(
            f"{file}: is not text in UTF-8: it is binary, or UTF-16 (iconv -f UTF-16LE -t UTF-8 converts it)"
        )


def _lines(stream: BinaryIO, file: str) -> Iterator[tuple[Place, str | BadRow]]:
    """Yield lines without their ends and without a byte order mark; blank ones are passed over.

    Only the line feed ends a line: `str.splitlines` would also cut at characters that JSON and prose may hold.
    """
    for number, content in enumerate(stream, start=1):
        if number == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        content = content.rstrip(b"\r\n")
        if not content.strip():
            continue
        try:
            yield Place(file, number), content.decode("utf-8")
        except UnicodeDecodeError as error:
            yield Place(file, number), BadRow(_not_utf8(error))


def _object(line: str) -> Row | BadRow:
    try:
        value = json.loads(line)
    except RecursionError:
        return BadRow("not JSON that can be read: nested too deep; each line must be one object")
    except ValueError as error:
        reason = str(error).split(";")[0]  # of a number of thousands of digits
        if isinstance(error, json.JSONDecodeError):
            reason = f"{error.msg} (column {error.colno})"
        return BadRow(f"not JSON: {reason}; each line must be one object")
    return value if isinstance(value, dict) else BadRow(_not_object(value))


def _record(header: list[str], cells: list[str]) -> Row | BadRow:
    if len(cells) != len(header):
        return BadRow(f"has {len(cells)} cells, the header has {len(header)}; quote cells that hold commas")
    row: Row = dict(zip(header, cells, strict=True))
    for name in JSON_IN_CSV:
        if row.get(name):
            try:
                row[name] = json.loads(row[name])
            except json.JSONDecodeError:
                return BadRow(f"column {name} is not JSON, which lists in a CSV cell must be")
    return row | {name: _messages_in_cell(row[name]) for name in MESSAGES_IN_CSV if name in row}


def _messages_in_cell(cell: str) -> Any:
    """Return a list of messages where a cell is one as JSON, else its text."""
    if not cell.lstrip().startswith("["):
        return cell
    try:
        value = json.loads(cell)
    except ValueError:
        return cell
    speaks = bool(value) and all(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value)
    return value if speaks else cell


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start]
    return (
        f"not UTF-8: byte 0x{byte:02x} at position {error.start}; "
        "convert the file, for instance with: iconv -f GB18030 -t UTF-8"
    )


def _not_object(value: Any) -> str:
    return f'is {_kind(value)}, not an object such as {{"prompt": "..."}}'


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", dict: "an object", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")

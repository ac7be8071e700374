"""A data set cut into pieces that processes can read apart from each other, and the hash of each of its files."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePath

from rlhf_ray.config.data import RowSource
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.file_formats import COMPRESSED, READERS, RawRow, check_beginning, format_of
from rlhf_ray.data.sources import Located, is_message_table, locate, read_file, read_rows, shown_name

PIECE_BYTES = 1 << 21
"""A piece of a file of lines; a process holds one at a time."""
BLOCK_BYTES = 1 << 20
CUT = {".jsonl", ".txt"}
"""Formats whose lines mean something by themselves. A rank list's first line may say how to read the others."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a data set."""

    source: RowSource
    file: str | None = None
    """None: the whole data set, as `read_rows` gives it."""
    begin: int = 0
    end: int | None = None
    """None: the whole file, as its reader gives it."""
    first_line: int = 1


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file as it was read."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Survey:
    """Files and pieces of a data set, in the order of their rows."""

    files: list[FileRecord]
    """None of a hub data set, which has its own versions."""
    pieces: list[Piece]


def survey(source: RowSource) -> Survey:
    """Hash the files of a data set and cut them into pieces, in the order of their rows.

    Raises:
        BadInput: nothing there, an unknown format, or a file that cannot be read.
    """
    found = locate(source)
    files: list[FileRecord] = []
    pieces: list[Piece] = []
    for file in found.files:
        record, parts = _survey_file(found, file, source)
        files.append(record)
        pieces += parts
    whole = source.limit is not None or found.kind != "files"
    return Survey(files, [Piece(source)] if whole else pieces)


def read_piece(piece: Piece) -> Iterator[RawRow]:
    """Yield the rows of a piece, each with its place in the file.

    Raises:
        BadInput: the file is broken as a whole.
    """
    if piece.file is None:
        yield from read_rows(piece.source)
        return
    found = locate(piece.source)
    if piece.end is None:
        yield from read_file(found, piece.file, piece.source)
        return
    with found.file_system.open(piece.file, "rb") as stream:
        stream.seek(piece.begin)
        content = stream.read(piece.end - piece.begin)
    shown = shown_name(piece.file, piece.source.path)
    for place, row in READERS[format_of(piece.file)](io.BytesIO(content), shown):
        yield replace(place, line=place.line + piece.first_line - 1), row


def _is_cut(file: str) -> bool:
    return format_of(file) in CUT and PurePath(file.lower()).suffix not in COMPRESSED


def _survey_file(found: Located, file: str, source: RowSource) -> tuple[FileRecord, list[Piece]]:
    digest = hashlib.sha256()
    size = lines = 0
    borders = [(0, 1)]
    shown = shown_name(file, source.path)
    try:
        with found.file_system.open(file, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                if not size and _is_cut(file):
                    check_beginning(block, shown)
                digest.update(block)
                last = block.rfind(b"\n")
                if last >= 0 and size + last + 1 - borders[-1][0] >= PIECE_BYTES:
                    borders.append((size + last + 1, lines + block.count(b"\n") + 1))
                lines += block.count(b"\n")
                size += len(block)
    except OSError as error:
        raise BadInput(f"{shown}: cannot be read: {error}") from error
    record = FileRecord(shown, size, digest.hexdigest())
    if not _is_cut(file) or is_message_table(found, file, source):
        return record, [Piece(source, file)]
    ends = [begin for begin, _ in borders[1:]] + [size]
    return record, [
        Piece(source, file, begin, end, line) for (begin, line), end in zip(borders, ends, strict=True) if end > begin
    ]

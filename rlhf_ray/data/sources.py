"""Raw rows of data sets with their places: files, globs, directories, URLs and hub names.

Formats made of lines are read line by line here, not by `datasets`, because a row that is broken must be named by its
line and passed over, where the library gives up the whole file. Parquet is read by pyarrow, the hub by `datasets`.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Literal

from rlhf_ray.config.data import RowSource, special_file
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import Place
from rlhf_ray.data.file_formats import BEGINNING, READERS, RawRow, check_beginning, format_of, own_columns
from rlhf_ray.data.layouts.message_tables import as_trees, is_message
from rlhf_ray.redaction.texts import hide_forms

SHOWN_PATH = 80
"""Characters of a name that cannot be one, in its error."""
ASSEMBLED = ("auto", "open_assistant", "open_assistant_conversations")
"""Layouts in which rows may be messages, each with the name of the one that it answers."""


def read_rows(data: RowSource) -> Iterator[RawRow]:
    """Yield the first `data.limit` rows in their order, each with its place; a broken row comes as a `BadRow`.

    A message table comes as its trees.

    Files of a directory or a glob come in the order of their names. Blank lines are passed over; they keep their
    numbers.

    Raises:
        BadInput: nothing there, an unknown format, or a file that is broken as a whole.
    """
    for index, row in enumerate(_all_rows(data)):
        if data.limit is not None and index == data.limit:
            return
        yield row


def _all_rows(data: RowSource) -> Iterator[RawRow]:
    found = locate(data)
    if found.kind == "hub":
        yield from _assembled(_hub_rows(data), data)
    elif found.kind == "saved":
        yield from _assembled(_saved_rows(data), data)
    for file in found.files:
        yield from read_file(found, file, data)


@dataclass(frozen=True)
class Located:
    """Files, or a hub name, to which a data set's path leads."""

    kind: Literal["files", "saved", "hub"]
    """`saved`: a directory that `datasets` wrote."""
    file_system: Any
    files: list[str]
    """Of kind `files`, in their order."""


def locate(data: RowSource) -> Located:
    """Find out where the rows are.

    Raises:
        BadInput: nothing there, or a file of an unknown format.
    """
    from fsspec.core import url_to_fs

    if not data.path.strip():
        raise BadInput("data.path: names nothing; give a file, a glob, a directory, a URL or a hub name")
    try:
        file_system, path = url_to_fs(data.path)
        there = file_system.exists(path)
    except (ValueError, ImportError, OSError) as error:
        # No such protocol, or a name that no file can have.
        raise BadInput(f"{hide_forms(data.path)[:SHOWN_PATH]!r}: cannot be read: {error}") from None
    if not there and not _is_pattern(path):
        if not _could_be_hub_name(data.path):
            raise BadInput(f"{data.path}: no such file or directory")
        return Located("hub", file_system, [])
    if any(file_system.exists(f"{path}/{name}") for name in ("dataset_dict.json", "state.json")):
        return Located("saved", file_system, [])
    return Located("files", file_system, _files(file_system, path, data.path))


def read_file(found: Located, file: str, data: RowSource) -> Iterator[RawRow]:
    """Yield the rows of one file; a message table as its trees.

    Raises:
        BadInput: it is broken as a whole.
    """
    yield from _assembled(_file_rows(found, file, data), data)


def is_message_table(found: Located, file: str, data: RowSource) -> bool:
    """Tell whether the rows of a file mean something only together."""
    if data.layout not in ASSEMBLED:
        return False
    return next((is_message(row) for _, row in _file_rows(found, file, data) if isinstance(row, dict)), False)


def _assembled(rows: Iterator[RawRow], data: RowSource) -> Iterator[RawRow]:
    return as_trees(rows) if data.layout in ASSEMBLED else rows


def _file_rows(found: Located, file: str, data: RowSource) -> Iterator[RawRow]:
    shown = shown_name(file, data.path)
    try:
        with found.file_system.open(file, "rb", compression="infer") as stream:
            check_beginning(stream.read(BEGINNING), shown)
            stream.seek(0)
            yield from READERS[format_of(file)](stream, shown)
    except (OSError, EOFError) as error:
        raise BadInput(f"{shown}: cannot be read: {error}") from error


def _is_pattern(path: str) -> bool:
    return any(character in path for character in "*?[")


def _could_be_hub_name(path: str) -> bool:
    parts = path.split("/")
    return (
        len(parts) <= 2
        and not path.startswith((".", "~", "/"))
        and "://" not in path
        and all(parts)
        and format_of(path) not in READERS
        and not (len(parts) == 2 and os.path.isdir(parts[0]))
    )


def _files(file_system: Any, path: str, given: str) -> list[str]:
    if _is_pattern(path) and not file_system.exists(path):
        found = [file for file in file_system.glob(path) if file_system.isfile(file)]
    elif file_system.isdir(path):
        everything = file_system.find(path)
        found = [file for file in everything if format_of(file) in READERS]
    else:
        found = [path]
    known = ", ".join(READERS)
    if not found:
        raise BadInput(f"{given}: no file here that can be read; formats are {known}")
    for file in found:
        _check_regular(file_system, file, shown_name(file, given))
        if format_of(file) not in READERS:
            raise BadInput(f"{shown_name(file, given)}: unknown format {format_of(file)!r}; formats are {known}")
    return sorted(found)


def _check_regular(file_system: Any, file: str, shown: str) -> None:
    """Raise BadInput for what is there but is no file."""
    from fsspec.implementations.local import LocalFileSystem

    if not isinstance(file_system, LocalFileSystem):
        return
    try:
        kind = special_file(file)
    except OSError as error:
        raise BadInput(f"{shown}: cannot be read: {error.strerror}") from None
    if kind is not None:
        raise BadInput(f"{shown}: is {kind}; write the rows to a file and name that")


def shown_name(file: str, given: str) -> str:
    """Return a file's name for messages: as given, or relative to the working directory if it lies there."""
    if PurePath(file).name == PurePath(given).name:
        return hide_forms(given)
    if "://" in given:
        return hide_forms(file)
    relative = os.path.relpath(file)
    return file if relative.startswith("..") else relative


def _saved_rows(data: RowSource) -> Iterator[RawRow]:
    """Read the rows of a directory that `datasets` wrote by `save_to_disk`."""
    from datasets import DatasetDict, load_from_disk

    loaded = load_from_disk(data.path)
    if isinstance(loaded, DatasetDict):
        if data.split not in loaded:
            raise BadInput(f"{data.path}: no split {data.split!r}; splits are {', '.join(loaded)}")
        loaded = loaded[data.split]
    yield from ((Place(data.path, index, "row"), own_columns(row)) for index, row in enumerate(loaded, start=1))


def _hub_rows(data: RowSource) -> Iterator[RawRow]:
    from datasets import load_dataset

    name, _, subset = data.path.partition(":")
    try:
        # Streaming reads no more than `limit` rows; without a limit the library's cache serves the next run.
        loaded = load_dataset(name, subset or None, split=data.split, streaming=data.limit is not None)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadInput(f"{data.path}: no such file or directory, and not loaded from the hub: {reason}") from error
    shown = f"{data.path}[{data.split}]"
    yield from ((Place(shown, index, "row"), own_columns(row)) for index, row in enumerate(loaded, start=1))

"""What wandb has of a run on this machine: the rows in the files of its earlier starts.

Each start of a run writes a file of its own, a log in LevelDB's format: blocks of 32 KiB, in which a record is one
chunk or several. https://github.com/google/leveldb/blob/main/doc/log_format.md
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FILE_HEADER = 7
CHUNK_HEADER = struct.Struct("<IHB")
"""Checksum, length and kind of a chunk."""

WHOLE, FIRST, LAST = 1, 2, 4
"""Kinds of chunks; one between the first and the last of a record is 3."""


def history(folder: Path, run_id: str) -> Iterator[dict[str, Any]]:
    """Read the rows that wandb's files hold of a run, start by start; what a kill tore is left out.

    Args:
        folder: of the run, in which wandb made its own.
        run_id: the run's id in wandb.

    Raises:
        ImportError: this wandb describes its records in another place.
    """
    # Names begin with the time of the start, after `run-` or `offline-run-`.
    starts = (folder / "wandb").glob(f"*run-*-{run_id}")
    for start in sorted(starts, key=lambda path: path.name.removeprefix("offline-")):
        for file in start.glob("*.wandb"):
            yield from _rows(file)


def last_step(folder: Path, run_id: str) -> int:
    """Return the highest step that wandb's files hold of a run; -1 where they hold none."""
    return max((row["step"] for row in history(folder, run_id) if isinstance(row.get("step"), int)), default=-1)


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    # Here, as only a run that wandb follows needs it.
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # made as it is imported

    for data in _records(file.read_bytes()):
        try:
            record = Record.FromString(data)
        except DecodeError:
            return
        if record.WhichOneof("record_type") == "history":
            names = [item.key or ".".join(item.nested_key) for item in record.history.item]
            values = [json.loads(item.value_json) for item in record.history.item]
            yield dict(zip(names, values, strict=True))


def _records(data: bytes) -> Iterator[bytes]:
    at, record = FILE_HEADER, b""
    while at + CHUNK_HEADER.size <= len(data):
        left = BLOCK - at % BLOCK
        if left < CHUNK_HEADER.size:
            at += left
            continue
        _, length, kind = CHUNK_HEADER.unpack_from(data, at)
        at += CHUNK_HEADER.size
        chunk = data[at : at + length]
        at += length
        if not kind or len(chunk) < length:
            return
        record = chunk if kind in (WHOLE, FIRST) else record + chunk
        if kind in (WHOLE, LAST):
            yield record

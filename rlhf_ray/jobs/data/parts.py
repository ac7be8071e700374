"""The files that `rlhf data` writes: the sample, split by prompt."""

import hashlib
import io
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rlhf_ray.config.jobs.cleaning import PARQUET, DataJobConfig, SplitConfig, part_file
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.cleaning.selection import Sampler, place_of, quotas, split_of
from rlhf_ray.data.row_files import ParquetRows, json_line
from rlhf_ray.jobs.data.sieve import Sieve, Sieved, prompt_row


class Measured(io.RawIOBase):
    """A file that is written, with its size and hash."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.size = 0
        """Bytes written."""
        self.digest = hashlib.sha256()

    def writable(self) -> bool:
        """Tell that this stream is for writing."""
        return True

    def write(self, content: Any) -> int:
        """Append bytes."""
        self.digest.update(content)
        written = self._file.write(content)
        self.size += written
        return written


@dataclass
class OutputPart:
    """One file."""

    name: str
    file: str
    """In the output folder."""
    content: str
    stream: Measured
    table: ParquetRows | None
    """None: lines of JSON."""
    rows: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that the part's content has no use for, by reason."""
    prompts: set[int] = field(default_factory=set)
    """Of a part of prompts: those that are in it."""

    def write(self, line: bytes, class_name: str) -> None:
        """Append a row, given as a line of JSON."""
        if self.table is None:
            self.stream.write(line)
        else:
            self.table.write(json.loads(line))
        self.rows += 1
        self.classes[class_name] += 1


class Parts:
    """Rows of the sieve into files by the hash of their prompt, or of the first of the prompts near to it."""

    def __init__(self, config: DataJobConfig, folder: Path, sieve: Sieve) -> None:
        self._config = config
        self._folder = folder
        self._sieve = sieve
        self.parts: list[OutputPart] = []
        self.wanted: dict[str, int] | None = None
        """Rows of each class in the sample; None where all are taken."""
        self.not_sampled: Counter[str] = Counter()

    def write(self) -> None:
        """Write all files."""
        sample, seed = self._config.sample, self._config.seed
        sampler = None
        if sample is not None:
            self.wanted = quotas(self._sieve.places.totals, sample.shares, sample.rows)
            sampler = Sampler(self._sieve.places, self.wanted)
        shares = [split.share for split in self._config.splits.values()]
        with ExitStack() as stack:
            self.parts = [self._open(stack, name, split) for name, split in self._config.splits.items()]
            for row in self._sieve.rows():
                if sampler and not sampler.takes(row.class_name, place_of(row.prompt_key, seed, "sample")):
                    self.not_sampled[row.class_name] += 1
                    continue
                _put(self.parts[split_of(place_of(row.group_key, seed, "split"), shares)], row)

    def _open(self, stack: ExitStack, name: str, split: SplitConfig) -> OutputPart:
        file = part_file(name)
        stream = Measured(stack.enter_context((self._folder / file).open("wb")))
        table = None
        if file.endswith(PARQUET):
            table = stack.enter_context(ParquetRows(stream, self._sieve.tables.schema(split.content)))
        return OutputPart(name, file, split.content, stream, table)


def _put(part: OutputPart, row: Sieved) -> None:
    if part.content == "rows":
        part.write(row.line, row.class_name)
        return
    if row.prompt_key in part.prompts:
        part.left_out["the prompt is there already"] += 1
        return
    try:
        told = prompt_row(json.loads(row.line), row.class_name)
    except BadRow as error:
        part.left_out[str(error)] += 1
        return
    part.prompts.add(row.prompt_key)
    part.write(json_line(told), row.class_name)

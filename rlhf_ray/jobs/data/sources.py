"""The sources of `rlhf data`: acquired where they are remote, hashed, and cut into pieces."""

from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.checkpoint.storage import writing
from rlhf_ray.config.data import RowLayout, RowSource
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.config.jobs.row_sources import FileSource, HttpSource
from rlhf_ray.data.acquisition import http_rows
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.pieces import Survey, survey
from rlhf_ray.data.row_files import json_line
from rlhf_ray.redaction.texts import hide_forms

ACQUIRED = "sources"
"""Folder, in the output, of the rows that HTTP sources gave."""


@dataclass(frozen=True)
class OpenSource:
    """A source whose rows can be read."""

    name: str
    licence: str
    origin: str
    """Path, hub name or URL, as in the config, without credentials."""
    layout: RowLayout
    survey: Survey
    report: ReadReport


def open_sources(config: DataJobConfig, folder: Path) -> list[OpenSource]:
    """Acquire and survey all sources, in their order.

    Raises:
        BadInput: one is not there, or answers without rows.
        AcquisitionFailed: a service did not answer.
    """
    return [_open(source, folder) for source in config.sources]


def _open(source: FileSource | HttpSource, folder: Path) -> OpenSource:
    if isinstance(source, HttpSource):
        file = _acquire(source, folder)
        files = RowSource(path=str(file), layout=source.layout, bad_rows=source.bad_rows)
        origin, name = source.url, source.name
    else:
        files, origin, name = source, source.path, source.name or source.path
    name = hide_forms(name)
    report = ReadReport(name, source.bad_rows)
    return OpenSource(name, source.licence, hide_forms(origin), source.layout, survey(files), report)


def _acquire(source: HttpSource, folder: Path) -> Path:
    file = folder / ACQUIRED / f"{source.name}.jsonl"
    with writing(str(file)) as stream:
        for row in http_rows(source):
            stream.write(json_line(row))
    return file

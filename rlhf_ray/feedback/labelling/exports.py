"""Labels as files: rankings that `rlhf reward` reads, and choices that `rlhf evaluate` reads too."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import IO

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.file_formats import RANK_LIST_HEADER, Row
from rlhf_ray.data.records import Ranking
from rlhf_ray.data.row_files import TIES, has_ties, json_line, open_rows, rank_list_line
from rlhf_ray.feedback.labelling.items import Task
from rlhf_ray.feedback.labelling.labels import Label, Labels

NO_PREFERENCE = "all answers have one rank, which prefers nothing"
"""Why a label is in no export."""


@dataclass
class ExportReport:
    """Counts of what went into a file, and of what did not."""

    rows: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Labels that the format or a reward model cannot take, by reason."""

    def lines(self, name: str) -> list[str]:
        """Return lines for the console: how many labels the file has, and how many were left out, by reason."""
        return [f"{self.rows} labels in {name}", *(f"  {n} left out: {why}" for why, n in self.left_out.items())]


def row_of(label: Label) -> Row:
    """Return a ranking as a row: TRL's column names first, then all that is known of it."""
    return {
        "prompt": label.prompt,
        "responses": list(label.answers),
        "ranks": list(label.ranks),
        "class": label.prompt_class,
        "annotator": label.annotator,
        "time": label.moment,
        "seconds": round(label.seconds, 1),
        "versions": list(label.versions),
        "shown": list(label.shown),
        "overall": list(label.overall),
        "flags": [list(flags) for flags in label.flags],
        "reason": label.reason,
        "label": label.id,
    }


def choice_of(label: Label) -> Row:
    """Return a choice between two answers as a row: `winner` is a, b or tie."""
    a, b = label.ranks
    return {
        "prompt": label.prompt,
        "a": label.answers[0],
        "b": label.answers[1],
        "winner": "a" if a < b else "b" if b < a else "tie",
        "model_a": label.versions[0],
        "model_b": label.versions[1],
        "class": label.prompt_class,
        "annotator": label.annotator,
        "time": label.moment,
        "seconds": round(label.seconds, 1),
        "reason": label.reason,
        "label": label.id,
    }


def write_export(labels: Iterable[Label], stream: IO[bytes], path: str, task: Task) -> ExportReport:
    """Write labels in the format that the suffix of `path` names.

    Choices keep their ties; rankings that prefer nothing are left out, and rank lists hold no ties of either.

    Raises:
        BadInput: Parquet cannot hold prompts of both kinds, text and messages, in one column.
    """
    report = ExportReport()
    kind = PurePath(path).suffix
    if kind == ".tsv":
        stream.write(f"{RANK_LIST_HEADER}\n".encode())
        stream.writelines(_rank_lists(labels, report))
        return report
    rows = _rows(labels, report, task)
    if kind == ".parquet":
        everything = list(rows)
        with open_rows(stream, path, everything, {}) as file:
            for row in everything:
                file.write(row)
    else:
        stream.writelines(map(json_line, rows))
    return report


def refusal(labels: Labels, path: str, task: Task) -> str | None:
    """Tell why `write_export` would refuse these labels; None where it would not.

    Only prompts can differ in a way that a format cannot hold, and only where some are messages.
    """
    if PurePath(path).suffix != ".parquet" or not labels.has_conversations():
        return None
    kept = labels.all() if task == "compare" else _decided(labels.all(), ExportReport())
    try:
        with open_rows(io.BytesIO(), path, [{"prompt": label.prompt} for label in kept], {}):
            return None
    except BadInput as error:
        return str(error)


def _rows(labels: Iterable[Label], report: ExportReport, task: Task) -> Iterator[Row]:
    if task == "label":
        yield from map(row_of, _decided(labels, report))
        return
    for label in labels:
        report.rows += 1
        yield choice_of(label)


def _decided(labels: Iterable[Label], report: ExportReport) -> Iterator[Label]:
    for label in labels:
        if len(set(label.ranks)) > 1:
            report.rows += 1
            yield label
        else:
            report.left_out[NO_PREFERENCE] += 1


def _rank_lists(labels: Iterable[Label], report: ExportReport) -> Iterator[bytes]:
    for label in _decided(labels, report):
        ranking = Ranking(label.prompt, label.answers, label.ranks)
        if has_ties(ranking):
            report.rows -= 1
            report.left_out[TIES] += 1
        else:
            yield rank_list_line(ranking)

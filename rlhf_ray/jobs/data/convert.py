"""`rlhf convert`: data sets of other layouts as rows of this project's."""

from collections.abc import Iterator
from pathlib import PurePath

from rich.console import Console

from rlhf_ray.checkpoint.storage import writing
from rlhf_ray.config.checks.files import is_among
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.tools import ConvertConfig
from rlhf_ray.data.bad_rows import BadRow, ReadReport
from rlhf_ray.data.cleaning.texts import texts_of
from rlhf_ray.data.columns import own_names, ranking_of
from rlhf_ray.data.file_formats import RANK_LIST_HEADER, Row
from rlhf_ray.data.loading import usable_rows
from rlhf_ray.data.row_files import TIES, has_ties, json_line, rank_list_line
from rlhf_ray.jobs.inference.rows import check_output, row_output


def run(config: ConvertConfig) -> None:
    """Write all rows; the file appears when all are there.

    Raises:
        BadInput: a file is wrong or missing, or too many rows are bad.
    """
    for path in config.data:
        if is_among(config.output, path):
            raise BadInput(f"output: {config.output} is read as {path}; name another file")
    reports = [ReadReport(path, config.bad_rows) for path in config.data]
    rows = (row for report in reports for row in _rows(config, report))
    kind = PurePath(config.output).suffix
    check_output(config.output)
    if kind == ".jsonl":
        with writing(config.output) as stream:
            stream.writelines(map(json_line, rows))
    elif kind == ".tsv":
        with writing(config.output) as stream:
            stream.write(f"{RANK_LIST_HEADER}\n".encode())
            stream.writelines(rank_list_line(ranking_of(row)) for row in rows)
    elif kind == ".parquet":
        everything = list(rows)
        with row_output(config.output, everything, {}) as file:
            for row in everything:
                file.write(row)
    else:
        raise BadInput(f"output: ends in .jsonl, .parquet or .tsv, not {config.output!r}")
    console = Console(highlight=False, markup=False)
    for report in reports:
        for line in report.lines():
            console.print(line, soft_wrap=True)
    console.print(f"{sum(report.used for report in reports)} rows in {config.output}", soft_wrap=True)


def _rows(config: ConvertConfig, report: ReadReport) -> Iterator[Row]:
    """Read the usable rows of one data set; at its end the report is judged."""
    source = RowSource(path=report.source, layout=config.layout, split=config.split)
    kind = PurePath(config.output).suffix

    def convert(row: Row) -> Row | None:
        row = own_names(row)
        texts_of(row)
        if kind == ".tsv":
            ranking = ranking_of(row)
            report.pass_over(ranking.columns)
            if has_ties(ranking):
                report.left_out[TIES] += 1
                return None
        if kind == ".jsonl":
            _check_json(row)
        return row

    return usable_rows(source, report, convert)


def _check_json(row: Row) -> None:
    try:
        json_line(row)
    except (TypeError, ValueError) as error:
        raise BadRow(f"JSON cannot hold it: {error}") from None

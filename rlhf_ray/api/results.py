"""What a job made, read from its run folder or its file: also of runs of the command, and of those that still go on."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.reading.documents import read_document

if TYPE_CHECKING:
    from pandas import DataFrame


class Rows(list[dict[str, Any]]):
    """A table: a list of rows, each a dict of its columns. Rows need not have all columns."""

    @property
    def columns(self) -> list[str]:
        """Names of all columns, in the order in which they first appear."""
        return list(dict.fromkeys(name for row in self for name in row))

    def column(self, name: str) -> list[Any]:
        """Return the values of a column, of the rows that have it.

        Raises:
            BadInput: no row has it; the message has the nearest name.
        """
        from rlhf_ray.config.errors import perhaps

        if name not in self.columns:
            raise BadInput(f"no column {name!r}{perhaps(name, self.columns) or f' among {self.columns}'}")
        return [row[name] for row in self if name in row]

    def to_pandas(self) -> "DataFrame":
        """Return the rows as a DataFrame, NaN where a row has no such column.

        Raises:
            RlhfError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise RlhfError("to_pandas needs pandas: pip install pandas") from None
        return pandas.DataFrame(list(self), columns=self.columns)


class Run:
    """The results of a job. Each is read from disk when it is asked for, so that those of a running job are as new."""

    def __init__(self, path: str | Path) -> None:
        """Find the results of a job.

        Args:
            path: its run folder; of `generate` and `score`, the file that they wrote.

        Raises:
            BadInput: there is nothing.
        """
        self.path = Path(path).expanduser().resolve()
        """Run folder, or file of rows."""
        if not self.path.exists():
            raise BadInput(f"{self.path}: no such run folder, and no such file")

    @property
    def status(self) -> str | None:
        """`finished`; `running`, also after a kill; `stopped`, to go on; or `failed`. None: the path does not tell."""
        from rlhf_ray.tracking.run_record import RunRecord

        record = RunRecord.read(self.path)
        return record.status if record is not None else None

    @property
    def config(self) -> dict[str, Any]:
        """The resolved config of the run.

        Raises:
            BadInput: the path is no folder with a config.
        """
        return read_document(self.path / "config.yaml").data

    @property
    def metrics(self) -> Rows:
        """Metrics by step: a row for each step, and one for each evaluation; see docs/metrics.md for the names."""
        from rlhf_ray.tracking.records import METRICS_FILE, read_records

        return Rows(read_records(self.path / METRICS_FILE))

    @property
    def samples(self) -> Rows:
        """Samples: of a training run those that its folder keeps; of `generate` and `score` all rows.

        Raises:
            BadInput: the file is of another format than `.jsonl` and `.parquet`.
        """
        from rlhf_ray.tracking.records import SAMPLES_FILE, read_records

        if self.path.is_dir():
            return Rows(read_records(self.path / SAMPLES_FILE))
        return _rows_of(self.path)

    @property
    def summary(self) -> dict[str, Any]:
        """Figures of each model, of `evaluate`.

        Raises:
            BadInput: the path holds no evaluation.
        """
        file = self.path / "summary.json"
        if not file.is_file():
            raise BadInput(f"{self.path} holds no evaluation: it has no {file.name}")
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return summary

    @property
    def model_path(self) -> Path | None:
        """Directory of the trained model, which loads with plain `from_pretrained`; None before the run has ended."""
        final = self.path / "final"
        return final if final.is_dir() else None

    @property
    def report(self) -> Path | None:
        """The page of the run, to be shown in a browser; None where there is none."""
        return next((page for name in ("report.html", "comparison.html") if (page := self.path / name).is_file()), None)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, status={self.status!r})"


def _rows_of(file: Path) -> Rows:
    if file.suffix == ".parquet":
        from pyarrow import parquet

        return Rows(parquet.read_table(file).to_pylist())
    if file.suffix == ".jsonl":
        with file.open(encoding="utf-8") as lines:
            return Rows(json.loads(line) for line in lines)
    raise BadInput(f"{file}: rows are read from .jsonl and .parquet")

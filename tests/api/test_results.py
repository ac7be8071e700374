"""What is read back of a run folder, and of a file of rows."""

import json
import sys
from pathlib import Path

import pytest

import rlhf_ray
from rlhf_ray.tracking.run_record import RunRecord


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that was killed while it wrote a line."""
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("output: run\nsteps: 2\n")
    rows = [{"step": 1, "time": 0.5, "reward": 0.25}, {"step": 2, "time": 1.5, "reward": 0.5, "kl": None}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3, "rew')
    (run / "samples.jsonl").write_text('{"step": 1, "prompt": "p", "response": "r"}\n')
    RunRecord("id", 2, {}).ended("stopped").write(run)
    return run


def test_a_run_folder_is_read(folder: Path) -> None:
    run = rlhf_ray.Run(folder)
    assert run.status == "stopped"
    assert run.config == {"output": "run", "steps": 2}
    assert run.metrics.columns == ["step", "time", "reward", "kl"]
    assert run.metrics.column("reward") == [0.25, 0.5]
    assert run.samples == [{"step": 1, "prompt": "p", "response": "r"}]
    assert (run.model_path, run.report) == (None, None)
    (folder / "final").mkdir()
    (folder / "report.html").touch()
    assert (run.model_path, run.report) == (folder / "final", folder / "report.html")
    assert repr(run) == f"Run('{folder}', status='stopped')"


def test_a_row_that_has_not_all_columns_has_nan_in_pandas(folder: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = rlhf_ray.Run(folder).metrics.to_pandas()
    assert list(frame.columns) == ["step", "time", "reward", "kl"]
    assert frame["step"].tolist() == [1, 2]
    assert pandas.isna(frame["kl"]).all()


def test_without_pandas_it_is_said_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(rlhf_ray.RlhfError, match="pip install pandas"):
        rlhf_ray.Run(folder).metrics.to_pandas()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_rows_of_a_file_are_its_samples(tmp_path: Path, suffix: str) -> None:
    from rlhf_ray.data.row_files import open_rows

    rows = [{"prompt": "p", "completion": "c"}, {"prompt": "刚收到货", "completion": "line\u2028end"}]
    file = tmp_path / f"rows.{suffix}"
    with file.open("wb") as stream, open_rows(stream, str(file), rows, {}) as writer:
        for row in rows:
            writer.write(row)
    run = rlhf_ray.Run(file)
    assert run.samples == rows
    assert (run.status, run.metrics, run.model_path) == (None, [], None)


def test_what_is_not_there_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(rlhf_ray.BadInput, match="nowhere: no such run folder"):
        rlhf_ray.Run(tmp_path / "nowhere")
    with pytest.raises(rlhf_ray.BadInput, match="Perhaps you meant reward"):
        rlhf_ray.Run(folder).metrics.column("rewards")
    with pytest.raises(rlhf_ray.BadInput, match="holds no evaluation"):
        _ = rlhf_ray.Run(folder).summary
    (folder / "summary.json").write_text('{"models": []}')
    assert rlhf_ray.Run(folder).summary == {"models": []}
    with pytest.raises(rlhf_ray.BadInput, match=r"rows are read from \.jsonl and \.parquet"):
        _ = rlhf_ray.Run(folder / "config.yaml").samples

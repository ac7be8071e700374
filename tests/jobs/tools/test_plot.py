"""`rlhf plot` redraws a run folder, and lays several over one another."""

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.tools import PlotConfig
from rlhf_ray.jobs.tools.plot import run
from rlhf_ray.tracking.records import RecordFile


def run_folder(path, rewards):
    metrics = RecordFile(path / "metrics.jsonl")
    for step, reward in enumerate(rewards):
        metrics.append({"step": step, "time": 0.0, "reward": reward})
    metrics.close()
    return str(path)


def test_one_run_is_drawn_into_its_folder(tmp_path, capsys):
    run(PlotConfig(runs=[run_folder(tmp_path / "one", [0.25, 0.75])]))
    assert (tmp_path / "one" / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = (tmp_path / "one" / "report.html").read_text(encoding="utf-8")
    assert "0.25" in report
    assert "0.75" in report
    assert capsys.readouterr().out.splitlines() == [
        str(tmp_path / "one" / name) for name in ("curves.png", "report.html")
    ]


def test_several_runs_are_laid_over_one_another(tmp_path):
    runs = [run_folder(tmp_path / group / "run", [value]) for group, value in (("a", 0.125), ("b", 0.625))]
    run(PlotConfig(runs=runs))
    report = (tmp_path / "a" / "comparison" / "report.html").read_text(encoding="utf-8")
    # Equal folder names are told apart by what stands before them.
    for word in ("a/run", "b/run", "0.125", "0.625"):
        assert word in report
    run(PlotConfig(runs=runs, output=str(tmp_path / "elsewhere")))
    assert (tmp_path / "elsewhere" / "curves.png").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match="does not exist"):
        run(PlotConfig(runs=[str(tmp_path / "missing")]))
    with pytest.raises(BadInput, match="is not a run folder"):
        run(PlotConfig(runs=[str(tmp_path)]))
    run_folder(tmp_path / "empty", [])
    with pytest.raises(BadInput, match="no metrics yet"):
        run(PlotConfig(runs=[str(tmp_path / "empty")]))

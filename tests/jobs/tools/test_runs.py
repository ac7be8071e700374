"""`rlhf runs` tells runs that go on from those that ended, and how."""

import fcntl
import os
import time
from pathlib import Path

import pytest

from rlhf_ray import cli
from rlhf_ray.tracking.records import METRICS_FILE, RecordFile
from rlhf_ray.tracking.run_record import RunRecord

DPO = "model: {path: m}\noutput: o\ndata: {path: d}\nreference_cache: c\nloss: {type: sigmoid}\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders have short names, so that none needs a second line of the table."""
    monkeypatch.chdir(tmp_path)


def make_run(folder: Path, status: str, rows: list[dict[str, float]], config: str = DPO) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(config)
    (folder / ".lock").write_text("process 1 on somewhere")
    record = RunRecord("id", 40, {}, status)
    record.write(folder)
    metrics = RecordFile(folder / METRICS_FILE)
    for step, row in enumerate(rows, start=1):
        metrics.append({"step": step, "time": 0.0, **row})
    metrics.close()
    return folder


def table(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    assert cli.main(["runs", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]


def test_what_a_run_does_and_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = [{"loss": 1 / (step + 1), "step_time": 2.0} for step in range(8)]
    living = make_run(tmp_path / "sweep" / "living", "running", losses)
    make_run(tmp_path / "sweep" / "gone", "running", losses[:4])
    make_run(tmp_path / "done", "finished", [*losses, {"eval_loss": 0.5}])
    hours = time.time() - 3 * 3600
    os.utime(tmp_path / "done" / METRICS_FILE, (hours, hours))
    with (living / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = table(capsys, ".")
    assert [row[0] for row in found] == ["sweep/living", "sweep/gone", "done"]
    assert [row[2] for row in found] == ["running", "killed", "finished"]
    assert [row[3] for row in found] == ["8/40", "4/40", "9/40"]
    assert {row[1] for row in found} == {"dpo"}
    assert {row[4] for row in found} == {"2"}
    assert found[2][5] == "3 h ago"
    assert found[0][6] == "loss 0.125"
    assert found[2][6] == "eval_loss 0.5, loss 0.125"


def test_metrics_that_are_asked_for_have_a_column_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(tmp_path / "a", "stopped", [{"loss": 1.0, "accuracy": 0.25}])
    make_run(tmp_path / "b", "failed", [{"loss": 2.0}])
    found = table(capsys, "a", "b", "--metrics", "[accuracy, loss]")
    assert [row[2:3] + row[6:] for row in found] == [["stopped", "0.25", "1"], ["failed", "", "2"]]


def test_a_run_that_is_looked_at_while_it_begins_has_its_folder(tmp_path: Path) -> None:
    """Looking takes no lock that stays."""
    folder = make_run(tmp_path / "a", "running", [])
    assert cli.main(["runs", str(folder)]) == 0
    with (folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize(
    ("folder", "said"),
    [("nothing", "folders: nothing is no folder"), (".", "folders: no run is in .; a run folder has a run.json")],
)
def test_where_no_run_is_a_line_says_so(folder: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", folder]) == 2
    assert capsys.readouterr().err.splitlines() == [f"rlhf: {said}"]

"""Stages of a pipeline, with small commands of `rlhf` and functions."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.pipelines import stages
from rlhf_ray.pipelines.stages import Stage, StageFailed, Stages, StageStopped, stage_table

ROWS = '{"text": "a b"}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text(ROWS)
    return tmp_path


def convert(folder: Path, name: str = "out.jsonl", data: str = "rows.jsonl") -> Stage:
    """A stage that takes a second: a tool that needs no Ray."""
    arguments = ["convert", str(folder / data), "--output", str(folder / name), "--layout", "trl"]
    return Stage("convert", arguments, folder / name)


def test_a_finished_stage_is_not_repeated(folder: Path) -> None:
    said: list[str] = []
    Stages(folder, said.append).run(convert(folder))
    made = (folder / "out.jsonl").stat().st_mtime_ns
    again = Stages(folder, said.append)
    again.run(convert(folder))
    assert (folder / "out.jsonl").stat().st_mtime_ns == made
    assert said[-1] == "convert: finished before"
    record = again.records["convert"]
    assert record.finished
    assert record.seconds > 0.1
    assert record.peak_memory is not None, "the system tells"
    assert stage_table([record]).row_count == 2


def test_a_result_that_is_gone_is_made_again(folder: Path) -> None:
    runs: list[int] = []

    def work() -> None:
        runs.append(1)
        (folder / "made").write_text("")

    stage = Stage("work", work, folder / "made")
    Stages(folder, print).run(stage)
    (folder / "made").unlink()
    Stages(folder, print).run(stage)
    assert len(runs) == 2


def test_another_command_does_not_pass_for_the_same(folder: Path) -> None:
    Stages(folder, print).run(convert(folder))
    with pytest.raises(BadInput, match="stage convert was made by another command"):
        Stages(folder, print).run(convert(folder, "other.jsonl"))


def test_errors_name_the_stage_and_keep_the_exit_code(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = Stages(folder, print)
    with pytest.raises(StageFailed, match="stage convert: rlhf convert failed with exit code 2") as failure:
        run.run(convert(folder, data="none.jsonl"))
    assert failure.value.exit_code == 2
    assert "none.jsonl" in capfd.readouterr().err, "the stage's own message stands above"
    assert not run.records["convert"].finished

    def work() -> None:
        raise RlhfError("no ink")

    with pytest.raises(StageFailed, match="stage print: no ink"):
        run.run(Stage("print", work, folder / "page"))
    with pytest.raises(StageStopped, match="stage idle stopped before its end"):
        run.run(Stage("idle", lambda: None, folder / "page"))


def test_a_list_of_stages_that_is_none(folder: Path) -> None:
    (folder / "stages.json").write_text('{"a": 1}')
    with pytest.raises(BadInput, match="not readable"):
        Stages(folder, print)


@pytest.mark.parametrize("code", [0, 130])
def test_a_request_to_stop_reaches_the_stage(code: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The child here ends when asked, as jobs do, without its result: well, or with their code before a first step."""
    script = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: sys.exit({code}))\n"
        f"pathlib.Path({str(folder / 'ready')!r}).write_text('')\n"
        "time.sleep(60)\n"
    )
    real = subprocess.Popen
    monkeypatch.setattr(
        stages.subprocess, "Popen", lambda _, **options: real([sys.executable, "-c", script], **options)
    )

    def ask() -> None:
        while not (folder / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(StageStopped, match="the same command goes on from"):
        Stages(folder, print).run(convert(folder))
    assert time.monotonic() - started < 30
    [row] = json.loads((folder / "stages.json").read_text())
    assert not row["finished"]


def test_a_stage_ends_with_a_pipeline_that_was_killed(folder: Path) -> None:
    script = f"""
import subprocess, sys
from pathlib import Path
from rlhf_ray.pipelines import stages
real = subprocess.Popen
child = "import os, pathlib, time; pathlib.Path({str(folder / "pid")!r}).write_text(str(os.getpid())); time.sleep(60)"
stages.subprocess.Popen = lambda _, **options: real([sys.executable, "-c", child], **options)
stages.Stages(Path({str(folder)!r}), print).run(stages.Stage("long", ["x"], Path("never")))
"""
    pipeline = subprocess.Popen([sys.executable, "-c", script])
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        time.sleep(0.05)
    process = int((folder / "pid").read_text())
    pipeline.kill()
    pipeline.wait()
    deadline = time.monotonic() + 10
    while _runs(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(process)


def _runs(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False

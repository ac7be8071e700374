"""A run folder belongs to one experiment."""

import fcntl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray.config.errors import BadInput, Interrupted, RlhfError
from rlhf_ray.config.jobs.supervised import SFTConfig
from rlhf_ray.runs.folder import RunFolder


def config(output: Path | str, **changes: Any) -> SFTConfig:
    settings = {"output": str(output), "model": {"path": "base"}, "data": {"path": "texts.txt"}}
    return SFTConfig.model_validate(settings | changes)


def test_it_holds_the_resolved_config(tmp_path: Path) -> None:
    folder = RunFolder.open(config(tmp_path / "deep" / "run", seed=7))
    assert SFTConfig.model_validate(yaml.safe_load(folder.config_file.read_text())).seed == 7
    assert folder.path == tmp_path / "deep" / "run"
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == [".lock", "config.yaml"], "no half-written file stays"


def with_a_step(folder: Path) -> Path:
    """A run folder whose run has made one step."""
    RunFolder.open(config(folder))
    (folder / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    return folder


def test_what_does_not_change_the_experiment_may_change_on_resume_and_is_said(tmp_path: Path) -> None:
    with_a_step(tmp_path)
    folder = RunFolder.open(config(tmp_path, epochs=3, trainer={"zero_stage": 2, "learning_rate": 2e-5}))
    assert yaml.safe_load(folder.config_file.read_text())["epochs"] == 3
    assert folder.notes == [
        "changed since the last start: epochs: 1.0 -> 3.0",
        "changed since the last start: trainer.learning_rate: 1e-05 -> 2e-05",
        "changed since the last start: trainer.zero_stage: 0 -> 2",
    ]
    again = RunFolder.open(config(f"{tmp_path}/../{tmp_path.name}", **{"epochs": 3, "trainer": {"zero_stage": 2}}))
    assert again.notes == ["changed since the last start: trainer.learning_rate: 2e-05 -> 1e-05"]


def test_an_address_that_was_signed_anew_is_the_same_data(tmp_path: Path) -> None:
    signed = "https://bucket.example/rows.jsonl?X-Signature="
    for signature in ("0a1b2c3d", "4e5f6a7b"):
        folder = RunFolder.open(config(tmp_path / "run", data={"path": f"{signed}{signature}"}))
        (folder.path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        assert folder.notes == []
        assert yaml.safe_load(folder.config_file.read_text())["data"]["path"] == f"{signed}[hidden]"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"model": {"path": "other"}}, "model.path: base -> other"),
        ({"data": {"path": "other.txt"}}, "data.path: texts.txt -> other.txt"),
        (
            {"data": {"path": "texts.txt", "shuffle": False}, "seed": 2, "epochs": 3},
            "seed: 0 -> 2; data.shuffle: true -> false",
        ),
        ({"trainer": {"lora": {"r": 8}}}, "trainer.lora: null -> {"),
    ],
)
def test_another_experiment_is_refused_and_changes_nothing(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    before = (with_a_step(tmp_path) / "config.yaml").read_text()
    with pytest.raises(BadInput, match=r"output: .* with other settings.* Choose another output") as refused:
        RunFolder.open(config(tmp_path, **changes))
    assert f": {named}" in str(refused.value)
    assert "epochs" not in str(refused.value)
    assert (tmp_path / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("trace", "content"),
    [
        ("metrics.jsonl", '{"step": 1}\n'),
        ("feedback.jsonl", "{}\n"),
        ("checkpoints/step_1/trainer/rank_0.safetensors", ""),
        ("final/config.json", "{}"),
    ],
)
def test_what_a_run_has_made_locks_its_folder(tmp_path: Path, trace: str, content: str) -> None:
    RunFolder.open(config(tmp_path))
    (tmp_path / trace).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / trace).write_text(content)
    with pytest.raises(BadInput, match="seed: 0 -> 1"):
        RunFolder.open(config(tmp_path, seed=1))


def test_a_run_without_a_step_may_become_another_one(tmp_path: Path) -> None:
    """An evaluation before the first step is none, and files without rows say nothing."""
    RunFolder.open(config(tmp_path))
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "eval_loss": 3.0}\n')
    (tmp_path / "feedback.jsonl").write_text("")
    (tmp_path / "checkpoints").mkdir()
    folder = RunFolder.open(config(tmp_path, seed=1, model={"path": "other"}))
    assert folder.notes == [
        f"no step was made yet in {tmp_path}: it begins anew with what is said now",
        "changed since the last start: seed: 0 -> 1",
        "changed since the last start: model.path: base -> other",
    ]
    assert yaml.safe_load(folder.config_file.read_text())["seed"] == 1


def test_a_config_beside_which_no_run_was_opened_is_not_replaced(tmp_path: Path) -> None:
    """Somebody's own config.yaml, in the folder that is named as output."""
    own = "output: .\nmodel: {path: base}\ndata: {path: texts.txt}\n"
    (tmp_path / "config.yaml").write_text(own)
    with pytest.raises(BadInput, match="holds a run with other settings"):
        RunFolder.open(config(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == own


def test_a_setting_that_an_earlier_version_did_not_have_is_no_change(tmp_path: Path) -> None:
    folder = RunFolder.open(config(tmp_path))
    settings = yaml.safe_load(folder.config_file.read_text())
    del settings["model"]["dtype"], settings["trainer"]["betas"]
    folder.config_file.write_text(yaml.safe_dump(settings))
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert RunFolder.open(config(tmp_path)).notes == []


@pytest.mark.parametrize("content", ["{", "", "just text", "- a\n- b\n"])
def test_a_config_that_is_none_is_not_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(RlhfError, match=r"config\.yaml"):
        RunFolder.open(config(tmp_path))
    assert (tmp_path / "config.yaml").read_text() == content


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RlhfError, match=r"output: cannot write to .*file.run: "):
        RunFolder.open(config(tmp_path / "file" / "run"))


class Stopped(Exception):
    """What ends a start."""


def start(settings: SFTConfig, made: str | None = None, error: BaseException | None = None, step: int = 0) -> None:
    """Begin as each job does; perhaps make one more file; end with an error."""
    with RunFolder.open(settings) as folder:
        for name in ("run.json", "curves.png", "report.html"):
            (folder.path / name).write_text("of this start")
        for name in ("metrics.jsonl", "samples.jsonl"):
            (folder.path / name).touch()
        for name in ("tensorboard", "wandb"):
            (folder.path / name).mkdir(exist_ok=True)
            (folder.path / name / "events").write_text("")
        if made is not None:
            (folder.path / made).parent.mkdir(parents=True, exist_ok=True)
            (folder.path / made).write_text(f'{{"step": {step}}}\n')
        raise error or Stopped


def test_a_start_that_made_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        start(config(tmp_path / "deep" / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_made_nothing_leaves_an_earlier_run_as_it_was(tmp_path: Path) -> None:
    with_a_step(tmp_path)
    for name in ("run.json", "report.html", "samples.jsonl", "tensorboard/earlier", "wandb/earlier"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("earlier")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(Stopped):
        start(config(tmp_path, epochs=9))
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "events"}
    assert after == before


@pytest.mark.parametrize("made", ["metrics.jsonl", "feedback.jsonl", "checkpoints/step_1/part"])
def test_a_start_that_made_something_keeps_it(tmp_path: Path, made: str) -> None:
    with pytest.raises(Stopped):
        start(config(tmp_path / "run"), made)
    assert (tmp_path / "run" / "config.yaml").exists()
    assert (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(("step", "stays"), [(0, False), (1, True)])
def test_samples_that_were_only_shown_before_the_first_step_are_nothing_made(
    tmp_path: Path, step: int, stays: bool
) -> None:
    with pytest.raises(Stopped):
        start(config(tmp_path / "run"), "samples.jsonl", step=step)
    assert (tmp_path / "run").exists() == stays


def test_a_file_of_somebody_else_stays_in_a_folder_that_goes(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        start(config(tmp_path / "run"), "notes.txt")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


# Ray turns SIGTERM into a SystemExit with the signal's number.
@pytest.mark.parametrize("signalled", [KeyboardInterrupt(), SystemExit(15)])
def test_an_interrupted_start_says_so_in_one_line(tmp_path: Path, signalled: BaseException) -> None:
    run = config(tmp_path / "run")
    with pytest.raises(Interrupted, match=r"^interrupted before the first step; nothing was written$") as caught:
        start(run, error=signalled)
    assert caught.value.exit_code == 130
    assert list(tmp_path.iterdir()) == []
    with_a_step(tmp_path / "run")
    with pytest.raises(Interrupted, match=rf"^interrupted before a step was made; {tmp_path}/run is as it was$"):
        start(run, error=signalled)
    with pytest.raises(Interrupted, match=r"^interrupted; the same command goes on from what is saved in "):
        start(run, "metrics.jsonl", signalled)


def test_a_stopped_run_says_of_which_end_its_model_is(tmp_path: Path) -> None:
    folder = RunFolder.of(config(tmp_path))
    assert folder.stopped(3, 8) == "stopped after step 3 of 8; the same command goes on from there"
    folder.final.mkdir()
    assert folder.stopped(3, 8).endswith(f". Until it has ended, what is in {tmp_path}/final is from before it went on")
    folder.final_average.mkdir()
    assert f"{tmp_path}/final and {tmp_path}/final_average is" in folder.stopped(3, 8)


def test_after_the_block_another_process_may_work_there(tmp_path: Path) -> None:
    with RunFolder.open(config(tmp_path)) as folder:
        pass
    with folder.lock_file.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert folder.config_file.exists()


def test_a_url_is_no_run_folder() -> None:
    with pytest.raises(RlhfError, match="output: s3://bucket/run is a URL"):
        RunFolder.open(config("s3://bucket/run"))


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    program = (
        "import sys, time; from tests.runs.test_run_folder import *\n"
        "folder = RunFolder.open(config(Path(sys.argv[1]))); print('open', flush=True); time.sleep(300)"
    )
    other = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(RlhfError, match=rf"output: process {other.pid} on .* works in {tmp_path}"):
            RunFolder.open(config(tmp_path))
    finally:
        other.kill()
        other.wait()
    RunFolder.open(config(tmp_path))

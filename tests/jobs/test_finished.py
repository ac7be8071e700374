"""The command of a finished run says where the model is, and starts and writes nothing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rlhf_ray import cli
from rlhf_ray.algorithms.kl import FixedKL
from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.checkpoint.checkpoints import Checkpoint, Checkpoints, Manifest
from rlhf_ray.config.commands import JOBS
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.data.cursor import Cursor
from rlhf_ray.jobs.ppo.state import PPOState
from rlhf_ray.jobs.ppo.step import PPODriver
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.schedule import RunProgress
from rlhf_ray.tracking.run_record import RunRecord
from tests.jobs.ppo_runs import write_config, write_rows

STEPS = 3
TRAINERS = ("sft", "reward", "dpo", "ppo", "feedback")
READS = dict.fromkeys(TRAINERS, "check_supervised") | {"ppo": "check_models", "feedback": "PPOData.read"}
"""What each trainer does first in a run that is not finished."""

Files = dict[Path, tuple[bytes, int]]


class Begun(Exception):
    """A job began its work."""


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if Ray starts."""
    monkeypatch.setattr(ray, "init", lambda *_, **__: pytest.fail("Ray was started"))


@pytest.fixture
def finished(
    workspace: Path, ppo_settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[[str], tuple[Path, Path]]:
    """Makes the config and the folder of a run of a verb that came to its end."""

    def make(verb: str) -> tuple[Path, Path]:
        rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c"}])
        if verb in ("ppo", "feedback"):
            settings = ppo_settings(tmp_path / "run", steps=STEPS)
        else:
            settings = {"model": {"path": str(workspace / "base")}, "data": {"path": str(rows)}}
        if verb == "feedback":
            ours = ("model", "data", "steps", "tracking")
            settings = {name: settings[name] for name in ours}
        config = write_config(tmp_path / f"{verb}.yaml", settings | {"output": str(tmp_path / "run")})
        folder = RunFolder.open(load_job(verb, [str(config)]))  # type: ignore[arg-type]
        RunRecord("id", STEPS, {}).ended("finished").write(folder.path)
        (folder.checkpoints / f"step_{STEPS}").mkdir(parents=True)
        (folder.checkpoints / f"step_{STEPS}" / "manifest.json").write_text("{}")
        folder.final.mkdir()
        write_rows(folder.path / "metrics.jsonl", [{"step": STEPS, "eval_reward": 1.0}])
        return config, folder.path

    return make


def files_of(folder: Path) -> Files:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("verb", TRAINERS)
def test_the_same_command_says_so_and_touches_nothing(
    verb: str, finished: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = finished(verb)
    before = files_of(folder)
    assert cli.main([verb, str(config)]) == 0
    assert capsys.readouterr().out == (
        f"finished before: all {STEPS} steps are made, and the model is in {folder / 'final'}\n"
    )
    assert files_of(folder) == before


def without_export(folder: Path) -> None:
    shutil.rmtree(folder / "final")


def killed(folder: Path) -> None:
    """After the last checkpoint, while the model was written: the one that is there is of an earlier end."""
    RunRecord("id", STEPS, {}).write(folder)


def without_last_checkpoint(folder: Path) -> None:
    (folder / "checkpoints" / f"step_{STEPS}").rename(folder / "checkpoints" / f"step_{STEPS - 1}")


def without_last_evaluation(folder: Path) -> None:
    write_rows(folder / "metrics.jsonl", [{"step": 0, "eval_reward": 1.0}, {"step": STEPS, "reward": 1.0}])


UNFINISHED: list[tuple[str, Callable[[Path], None] | None, list[str]]] = [
    # verb, what is missing, further arguments
    *((verb, missing, []) for verb in TRAINERS for missing in (without_export, killed, without_last_checkpoint)),
    ("ppo", without_last_evaluation, []),
    ("ppo", None, ["--policy.ema_decay", "0.9"]),
    ("ppo", None, ["--steps", "4"]),
    ("feedback", None, ["--steps", "4"]),
    ("sft", None, ["--epochs", "2"]),
    ("dpo", None, ["--batch_size", "2"]),
    ("reward", None, ["--members", "2"]),
]


@pytest.mark.parametrize(("verb", "change", "arguments"), UNFINISHED)
def test_a_run_that_lacks_something_goes_on(
    verb: str,
    change: Callable[[Path], None] | None,
    arguments: list[str],
    finished: Callable[[str], tuple[Path, Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def begin(*_: Any) -> None:
        raise Begun

    config, folder = finished(verb)
    if change is not None:
        change(folder)
    monkeypatch.setattr(f"{JOBS[verb].module}.{READS[verb]}", begin)
    with pytest.raises(Begun):
        cli.main([verb, str(config), *arguments])


def test_changed_settings_are_said_to_have_no_effect(
    finished: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = finished("ppo")
    before = files_of(folder)
    assert cli.main(["ppo", str(config), "--checkpoint.keep", "7"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["of no effect, as no step is left: checkpoint.keep: 10 -> 7"]
    assert files_of(folder) == before


@pytest.mark.parametrize("verb", TRAINERS)
def test_another_experiment_is_refused_all_the_same(
    verb: str, finished: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = finished(verb)
    assert cli.main([verb, str(config), "--seed", "5"]) == 2
    assert "stay the same within a run: seed: 0 -> 5." in capsys.readouterr().err


def test_an_ensemble_is_finished_when_all_its_members_are(
    finished: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = finished("reward")
    members = folder / "members" / "2"
    shutil.copytree(folder, members)
    for path, place in ((folder, 0), (members, 1)):
        settings = json.loads(json.dumps(load_job("reward", [str(config)]).model_dump(mode="json")))
        write_config(path / "config.yaml", settings | {"members": 2, "output": str(path), "seed": place})
    assert cli.main(["reward", str(config), "--members", "2"]) == 0
    assert [line.rsplit(" ", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        str(folder / "final"),
        str(members / "final"),
    ]


@pytest.mark.parametrize(
    ("saved", "recorded", "evaluated"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_an_evaluation_after_the_last_checkpoint_is_not_repeated(
    saved: bool, recorded: bool, evaluated: bool, finished: Callable[[str], tuple[Path, Path]]
) -> None:
    """A run that was asked to leave before it, and made it at the next start, has it in its metrics alone."""
    config, folder = finished("ppo")
    if not recorded:
        without_last_evaluation(folder)
    cursor = Cursor(["a", "b"], seed=0)
    state = {
        "step": STEPS,
        "evaluated": saved,
        "prompts": cursor.state(),
        "kl_coefficient": 0.1,
        "reward_moments": asdict(RunningMoments()),
        "constraint": None,
        "ptx": None,
    }
    driver = PPODriver(
        load_job("ppo", [str(config)]),  # type: ignore[arg-type]
        SimpleNamespace(trained={}, memory=None),  # type: ignore[arg-type]
        {},
        [],
        SimpleNamespace(resume_after=lambda step, source: None),  # type: ignore[arg-type]
        Checkpoints(str(folder / "checkpoints"), 1),
        PPOState(cursor, FixedKL(0.1)),
    )
    progress = driver.restore(Checkpoint("", Manifest(STEPS, {}, state)))
    assert progress == RunProgress(STEPS, STEPS, evaluated)

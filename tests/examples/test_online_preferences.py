"""The online preference loop: its parts, a run in small without Ray, and (slow) what it is for."""

import dataclasses
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from examples.online_preferences import page as pages
from examples.online_preferences import report
from examples.online_preferences import run as runs
from examples.online_preferences.page import PageEnded, page_beside
from examples.online_preferences.run import RESULT_FILE, NothingDecided, WaitingForPeople
from examples.online_preferences.run_name import KEPT_FILE, run_name
from examples.online_preferences.settings import Settings
from examples.online_preferences.tasks import TASKS
from rlhf_ray.config.reading.loading import load_arguments
from rlhf_ray.feedback.clips.store import ClipStore
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.tracking.history import History
from tests.examples.online_runs import SMALL, RolesHere, run_here, series_of, settings_in

ROOT = Path(__file__).parents[2]


@pytest.fixture
def _short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "pendulum", dataclasses.replace(TASKS["pendulum"], steps=40))


@pytest.mark.usefixtures("_short_episodes")
def test_a_run_that_is_stopped_or_whose_roles_die_equals_one_that_is_not(tmp_path: Path) -> None:
    whole, stopped, dying = (settings_in(tmp_path / name, checkpoint={"every_steps": 2}) for name in ("a", "b", "c"))
    assert run_here(whole)
    assert not run_here(stopped, looks=4)
    assert run_here(stopped)
    assert run_here(dying, deaths=[("acting", 1), ("acting", 4)])
    expected = series_of(whole)
    assert expected["comparisons"][-1] == 16
    assert expected["comparisons"] == sorted(expected["comparisons"])
    assert all(np.isfinite(expected[name]).all() for name in ("reward", "eval_reward", "loss", "val/ratio"))
    for other in map(series_of, (stopped, dying)):
        assert {name: pytest.approx(values, nan_ok=True, abs=0) for name, values in expected.items()} == other


@pytest.mark.usefixtures("_short_episodes")
def test_the_true_reward_needs_no_judge_and_goes_on_as_well(tmp_path: Path) -> None:
    whole, stopped = (settings_in(tmp_path / name, rewards=["true"]) for name in ("a", "b"))
    assert RolesHere(whole).names == ["acting"]
    assert run_here(whole)
    assert "comparisons" not in series_of(whole)
    assert not run_here(stopped, looks=3)
    assert run_here(stopped)
    assert series_of(stopped) == series_of(whole)


@pytest.mark.usefixtures("_short_episodes")
def test_people_are_waited_for_and_what_they_say_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOOK_SECONDS", 0.0)
    settings = settings_in(tmp_path, judge="people", answer_minutes=0.001)
    with pytest.raises(WaitingForPeople, match="4 pairs wait"):
        run_here(settings)
    with _answering(settings, ["left", "right", "equal", "cannot_tell"] * 10, monkeypatch):
        assert run_here(settings)
    asked = series_of(settings)["comparisons"]
    assert asked[0] == 4
    assert asked[-1] == 16


@contextmanager
def _answering(settings: Settings, choices: Iterable[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[ClipStore]:
    """Somebody chooses at once whatever waits, in the same place of the store from first to last."""
    left = iter(choices)
    with closing(Database(settings.page().store)) as database, monkeypatch.context() as patched:
        store = ClipStore(database, run_name(settings))

        class Answering(RolesHere):
            def _together(self, phase: str, *calls: tuple[Any, ...]) -> list[Any]:
                while (pair := store.draw("anna")) is not None:
                    store.choose("anna", pair.id, f"{run_name(settings)} {pair.id}", next(left), 1.0)
                return super()._together(phase, *calls)

        patched.setattr("tests.examples.online_runs.RolesHere", Answering)
        yield store


@pytest.mark.usefixtures("_short_episodes")
def test_a_run_of_people_goes_on_elsewhere_with_what_they_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LOOK_SECONDS", 0.0)
    settings = settings_in(tmp_path / "here", judge="people", answer_minutes=0.05, rounds=8)
    with _answering(settings, ["left"] * 40, monkeypatch):
        assert not run_here(settings, looks=5)
    before = series_of(settings)["comparisons"]
    assert before[-1] < 16
    # Another machine, which sees the folder under another path.
    monkeypatch.setattr("platform.node", lambda: "another-pod")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = settings_in(tmp_path / "there", judge="people", answer_minutes=0.05, rounds=8)
    with _answering(moved, ["right"] * 40, monkeypatch) as store:
        assert run_here(moved)
        assert [choice for _, choice in store.chosen()].count("left") == before[-1]
    assert series_of(moved)["comparisons"][-1] == 16


@pytest.mark.usefixtures("_short_episodes")
def test_a_run_whose_choices_are_lost_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOOK_SECONDS", 0.0)
    settings = settings_in(tmp_path, judge="people", answer_minutes=0.05)
    with _answering(settings, ["left"] * 40, monkeypatch):
        assert not run_here(settings, looks=5)
    (Path(settings.output) / KEPT_FILE).unlink()
    with _answering(settings, ["right"] * 40, monkeypatch) as store:
        assert run_here(settings)
        assert [choice for _, choice in store.chosen()] == ["right"] * 16


@pytest.mark.usefixtures("_short_episodes")
def test_what_nobody_can_tell_is_followed_by_other_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOOK_SECONDS", 0.0)
    settings = settings_in(tmp_path / "some", judge="people", answer_minutes=0.05)
    with _answering(settings, ["cannot_tell"] * 5 + ["left"] * 40, monkeypatch) as store:
        assert run_here(settings)
        pairs = [pair for pair, _ in store.chosen()]
    assert series_of(settings)["comparisons"][0] == 8
    assert series_of(settings)["comparisons"][-1] == len(pairs) == 16
    asked = [pair.left.inputs.tobytes() + pair.right.inputs.tobytes() for pair in pairs]
    assert not set(asked[4:8]) <= set(asked[:4]), "not the same again"
    hopeless = settings_in(tmp_path / "none", judge="people", answer_minutes=0.05)
    with (
        _answering(hopeless, ["cannot_tell"] * 99, monkeypatch),
        pytest.raises(NothingDecided, match="any of 16 pairs"),
    ):
        run_here(hopeless)


@pytest.mark.usefixtures("_short_episodes")
def test_nobody_is_waited_for_without_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "LOOK_SECONDS", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = settings_in(tmp_path, judge="people", answer_minutes=0.2, port=port)
    # In place of the page, a process that ends at once, with exit code 1.
    monkeypatch.setattr(pages.sys, "executable", shutil.which("false"))
    with page_beside(settings, tmp_path / "none.yaml") as page, pytest.raises(PageEnded, match="exit code 1"):
        run_here(settings, page=page)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "examples.online_preferences", *arguments]


@contextmanager
def _running(command: list[str], folder: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _until(check: Callable[[], bool], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_sigterm_saves_and_the_same_command_goes_on_through_a_death(tmp_path: Path) -> None:
    """On Ray: a run that was stopped, went on and lost an actor equals one in this process that did not."""
    settings = settings_in(tmp_path / "here", rounds=30)
    threads = torch.get_num_threads()
    # As in an actor: sums of several threads are rounded in another order.
    torch.set_num_threads(1)
    try:
        assert run_here(settings)
    finally:
        torch.set_num_threads(threads)
    options = [f"--{name}={value}" for name, value in (SMALL | {"rounds": 30}).items()]
    line = _command("--output", str(tmp_path / "ray"), "--seeds", "[3]", "--rewards", "[preferences]", *options)
    folder = tmp_path / "ray" / "preferences" / "seed_3"
    with _running(line, tmp_path) as process:
        _until(lambda: History.read(folder).last_step() >= 3)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "the same command goes on" in said
    assert not (folder / RESULT_FILE).exists()
    with _running(line, tmp_path) as process:
        _until(lambda: History.read(folder).last_step() >= 8)
        children = psutil.Process(process.pid).children(recursive=True)
        [actor] = [child for child in children if "ray::PredictingRole" in " ".join(child.cmdline())]
        actor.kill()
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "all roles start again from the last checkpoint" in said
    here, there = series_of(settings), {name: one.values for name, one in History.read(folder).series.items()}
    for name in ("reward", "eval_reward", "comparisons", "loss", "val/ratio"):
        assert there[name] == pytest.approx(here[name], rel=1e-6), name


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_comparisons_teach_what_the_true_reward_does(tmp_path: Path) -> None:
    line = _command("--output", str(tmp_path / "runs"))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1700, check=False
    )
    assert done.returncode == 0, done.stderr
    found = report.results(load_arguments(Settings, ["--output", str(tmp_path / "runs")]))
    for seed in (0, 1, 2):
        true, learned = found["true"][seed], found["preferences"][seed]
        assert learned["comparisons"] <= 700
        part = report.share(true, learned)
        assert part is not None, done.stdout
        assert part >= 0.9, done.stdout

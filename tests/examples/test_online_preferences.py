"""The online preference loop: its parts, a run in small without Ray, and (slow) what it is for."""

import copy
import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from examples.online_preferences import __main__ as command
from examples.online_preferences import page as pages
from examples.online_preferences import report, scenes
from examples.online_preferences.agent import ActingRole
from examples.online_preferences.page import PageEnded, RunningPage, draw_clips, page_beside
from examples.online_preferences.roles import Roles, questions_due
from examples.online_preferences.run import FIXED, RESULT_FILE, NothingDecided, Run, WaitingForPeople, finished
from examples.online_preferences.run_name import KEPT_FILE, run_name
from examples.online_preferences.settings import Settings
from examples.online_preferences.tasks import TASKS, Course
from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.cluster.errors import RoleDied
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.reading.loading import load_arguments
from rlhf_ray.feedback.clips.store import ClipStore
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.runs.recovery import run_through_deaths
from rlhf_ray.runs.stopping import StopRequest
from rlhf_ray.tracking.history import History
from rlhf_ray.tracking.records import METRICS_FILE, RecordFile

ROOT = Path(__file__).parents[2]
SMALL = {"rounds": 4, "episodes": 2, "comparisons": 16, "fit_steps": 2, "evaluation_episodes": 2, "evaluate_every": 2}


class RolesHere(Roles):
    """The roles in this process, one after the other; as through Ray, what one gives away is a copy."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._groups = {name: kind(**arguments) for name, (kind, arguments) in self._kinds().items()}
        self.dies_at: list[tuple[str, int]] = []

    def _together(self, phase: str, *calls: tuple[Any, ...]) -> list[Any]:
        for role, method, *arguments in calls:
            if method == "train" and self.dies_at and self.dies_at[0] == (role, arguments[0]):
                self.dies_at.pop(0)
                raise RoleDied(f"{role} rank 0 died", role, 0, phase)
        given = [copy.deepcopy(call) for call in calls]
        return copy.deepcopy([getattr(self._groups[role], method)(*rest) for role, method, *rest in given])

    def start_again(self, dead: str) -> None:
        self._groups = {name: kind(**arguments) for name, (kind, arguments) in self._kinds().items()}


class Records:
    """A tracker that draws nothing."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.run_id = run_id
        self._file = RecordFile(folder / METRICS_FILE)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self._file.append({"step": step, **metrics})

    def truncate_after(self, step: int) -> None:
        self._file.truncate_after(step)

    def message(self, text: str) -> None:
        assert "start again" in text

    def progress(self, step: int, part: str) -> None:
        assert part == "idle"


class Stop(StopRequest):
    """Asks to stop once it was looked at so often."""

    def __init__(self, looks: int | None) -> None:
        super().__init__()
        self.looks = looks

    def __bool__(self) -> bool:
        if self.looks is not None:
            self.looks -= 1
        return self.looks is not None and self.looks < 0


def _settings(folder: Path, **more: Any) -> Settings:
    settings = Settings.model_validate({"output": str(folder), "seeds": [3], **SMALL, **more})
    return settings.one(settings.rewards[-1], 3)


def _run(
    settings: Settings,
    looks: int | None = None,
    deaths: list[tuple[str, int]] | None = None,
    page: RunningPage | None = None,
) -> bool:
    folder = Path(settings.output)
    checkpoints = Checkpoints(str(folder / "checkpoints"), 2)
    roles = RolesHere(settings)
    roles.dies_at = list(deaths or [])
    run = Run(settings, roles, checkpoints, Records(folder, "run"), Stop(looks), page)  # type: ignore[arg-type]
    return run_through_deaths(run.begin, run.go_on, run.recover, ["acting", "predicting", "comparing"])


def _series(settings: Settings) -> dict[str, list[float]]:
    found = History.read(Path(settings.output)).series
    return {name: series.values for name, series in found.items() if name != "step_time"}


@pytest.fixture
def _short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "pendulum", dataclasses.replace(TASKS["pendulum"], steps=40))


@pytest.mark.usefixtures("_short_episodes")
def test_a_run_that_is_stopped_or_whose_roles_die_equals_one_that_is_not(tmp_path: Path) -> None:
    whole, stopped, dying = (_settings(tmp_path / name, checkpoint={"every_steps": 2}) for name in ("a", "b", "c"))
    assert _run(whole)
    assert not _run(stopped, looks=4)
    assert _run(stopped)
    assert _run(dying, deaths=[("acting", 1), ("acting", 4)])
    expected = _series(whole)
    assert expected["comparisons"][-1] == 16
    assert expected["comparisons"] == sorted(expected["comparisons"])
    assert all(np.isfinite(expected[name]).all() for name in ("reward", "eval_reward", "loss", "val/ratio"))
    for other in (stopped, dying):
        assert {name: pytest.approx(values, nan_ok=True, abs=0) for name, values in expected.items()} == _series(other)


@pytest.mark.usefixtures("_short_episodes")
def test_the_true_reward_needs_no_judge_and_goes_on_as_well(tmp_path: Path) -> None:
    whole, stopped = (_settings(tmp_path / name, rewards=["true"]) for name in ("a", "b"))
    assert RolesHere(whole).names == ["acting"]
    assert _run(whole)
    assert "comparisons" not in _series(whole)
    assert not _run(stopped, looks=3)
    assert _run(stopped)
    assert _series(stopped) == _series(whole)


@pytest.mark.usefixtures("_short_episodes")
def test_people_are_waited_for_and_what_they_say_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.online_preferences.run.LOOK_SECONDS", 0.0)
    settings = _settings(tmp_path, judge="people", answer_minutes=0.001)
    with pytest.raises(WaitingForPeople, match="4 pairs wait"):
        _run(settings)
    with _answering(settings, ["left", "right", "equal", "cannot_tell"] * 10, monkeypatch):
        assert _run(settings)
    asked = _series(settings)["comparisons"]
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

        patched.setattr(sys.modules[__name__], "RolesHere", Answering)
        yield store


@pytest.mark.usefixtures("_short_episodes")
def test_a_run_of_people_goes_on_elsewhere_with_what_they_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("examples.online_preferences.run.LOOK_SECONDS", 0.0)
    settings = _settings(tmp_path / "here", judge="people", answer_minutes=0.05, rounds=8)
    with _answering(settings, ["left"] * 40, monkeypatch):
        assert not _run(settings, looks=5)
    before = _series(settings)["comparisons"]
    assert before[-1] < 16
    # Another machine, which sees the folder under another path.
    monkeypatch.setattr("platform.node", lambda: "another-pod")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = _settings(tmp_path / "there", judge="people", answer_minutes=0.05, rounds=8)
    with _answering(moved, ["right"] * 40, monkeypatch) as store:
        assert _run(moved)
        assert [choice for _, choice in store.chosen()].count("left") == before[-1]
    assert _series(moved)["comparisons"][-1] == 16


@pytest.mark.usefixtures("_short_episodes")
def test_a_run_whose_choices_are_lost_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.online_preferences.run.LOOK_SECONDS", 0.0)
    settings = _settings(tmp_path, judge="people", answer_minutes=0.05)
    with _answering(settings, ["left"] * 40, monkeypatch):
        assert not _run(settings, looks=5)
    (Path(settings.output) / KEPT_FILE).unlink()
    with _answering(settings, ["right"] * 40, monkeypatch) as store:
        assert _run(settings)
        assert [choice for _, choice in store.chosen()] == ["right"] * 16


@pytest.mark.usefixtures("_short_episodes")
def test_what_nobody_can_tell_is_followed_by_other_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.online_preferences.run.LOOK_SECONDS", 0.0)
    settings = _settings(tmp_path / "some", judge="people", answer_minutes=0.05)
    with _answering(settings, ["cannot_tell"] * 5 + ["left"] * 40, monkeypatch) as store:
        assert _run(settings)
        pairs = [pair for pair, _ in store.chosen()]
    assert _series(settings)["comparisons"][0] == 8
    assert _series(settings)["comparisons"][-1] == len(pairs) == 16
    asked = [pair.left.inputs.tobytes() + pair.right.inputs.tobytes() for pair in pairs]
    assert not set(asked[4:8]) <= set(asked[:4]), "not the same again"
    hopeless = _settings(tmp_path / "none", judge="people", answer_minutes=0.05)
    with (
        _answering(hopeless, ["cannot_tell"] * 99, monkeypatch),
        pytest.raises(NothingDecided, match="any of 16 pairs"),
    ):
        _run(hopeless)


@pytest.mark.usefixtures("_short_episodes")
def test_nobody_is_waited_for_without_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("examples.online_preferences.run.LOOK_SECONDS", 0.01)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = _settings(tmp_path, judge="people", answer_minutes=0.2, port=port)
    # In place of the page, a process that ends at once, with exit code 1.
    monkeypatch.setattr(pages.sys, "executable", shutil.which("false"))
    with page_beside(settings, tmp_path / "none.yaml") as page, pytest.raises(PageEnded, match="exit code 1"):
        _run(settings, page=page)


def test_episodes_have_one_length_whatever_the_environment_says() -> None:
    course = Course(TASKS["cartpole"], 3)
    push = np.ones(3, dtype=np.int64)
    found = course.walk(lambda seen: (push, np.tile([0.0, 1.0], (3, 1)), np.zeros(3)), [1])
    # Pushed to one side all the time, each of them falls many times in 200 steps.
    assert found.true_rewards.shape == (3, 200)
    assert ((found.true_rewards == -1).sum(1) > 10).all()
    assert (np.abs(found.observations[:, :, 2]) < 1.6).all()
    again = course.walk(lambda seen: (push, np.tile([0.0, 1.0], (3, 1)), np.zeros(3)), [1])
    np.testing.assert_array_equal(found.observations, again.observations)
    other = course.walk(lambda seen: (push, np.tile([0.0, 1.0], (3, 1)), np.zeros(3)), [2])
    assert (found.observations != other.observations).any()


@pytest.mark.parametrize("task", TASKS)
def test_clips_hold_what_happened(task: str) -> None:
    role = ActingRole(task, 0, 2, 2)
    clips = role.explore().clips
    assert clips.inputs.shape == (8, TASKS[task].clip_steps, len(TASKS[task].scale) + TASKS[task].actions)
    assert np.abs(clips.inputs).max() < 3
    if task == "pendulum":
        cosine, sine, speed = np.moveaxis(clips.observations, 2, 0)
        torque = clips.actions[..., 0] * 2
        cost = np.arctan2(sine, cosine) ** 2 + 0.1 * (8 * speed) ** 2 + 0.001 * torque**2
        np.testing.assert_allclose(clips.true_returns, -cost.sum(1), rtol=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_clips_are_drawn_frame_by_frame(task: str) -> None:
    known = TASKS[task]
    clips = ActingRole(task, 0, 1, 1).explore().clips.take([0])
    drawn = ET.fromstring(draw_clips(task)(clips))
    moving = [one for one in drawn.iter() if one.tag.endswith("animateTransform") and one.get("calcMode") == "discrete"]
    assert {len(one.get("values", "").split(";")) for one in moving} == {known.clip_steps}
    seconds = float(moving[0].get("dur", "").removesuffix("s"))
    assert seconds == pytest.approx(known.clip_steps / known.frames_per_second)
    assert not re.search(r"script|href|on\w+=", draw_clips(task)(clips))


def test_an_upright_pendulum_is_drawn_upright() -> None:
    angles = np.radians([0, 90, 180])
    scene = scenes.pendulum(np.stack([np.cos(angles), np.sin(angles), angles * 0], axis=1))
    # SVG turns with the clock, the environment against it.
    assert scene.parts[0].degrees == pytest.approx([0, -90, -180])


BAD = [
    (
        ["--task", "pendulm"],
        "--task: input should be 'pendulum' or 'cartpole', not 'pendulm'. Perhaps you meant pendulum?",
    ),
    (["--task", "Humanoid-v5"], "--task: input should be 'pendulum' or 'cartpole', not 'Humanoid-v5'"),
    (["--tasks", "pendulum"], "--tasks: unknown key. Perhaps you meant --task?"),
    (["--seeds", "[0, 0]"], "--seeds: are different whole numbers"),
    (["--seeds", "[-1]"], "--seeds: are different whole numbers"),
    (["--seeds", "[99999999999999]"], "--seeds: are different whole numbers"),
    (["--seeds", "[]"], "--seeds: "),
    (["--seeds", "0.5"], "--seeds: "),
    (["--rewards", "[fake]"], "--rewards: "),
    (["--rewards", "[]"], "--rewards: "),
    (["--judge", "nobody"], "--judge: input should be 'oracle' or 'people', not 'nobody'"),
    (["--rounds", "0"], "--rounds: "),
    (["--comparisons", "3"], "--comparisons: "),
    (["--comparisons", "8"], "first_share: 0.25 of 8 comparisons are fewer than the 4"),
    (["--first_share", "0"], "--first_share: "),
    (["--members", "1"], "--members: "),
    (["--judge", "people"], "seeds: people judge one run at a time; give one seed, such as --seeds [0]"),
    (["--store", "clips.db"], "store: an oracle needs none; it is for --judge people"),
    (["--judge", "people", "--seeds", "[0]", "--store", "mysql://host/name"], "--store: is a file of SQLite or a URL"),
    (["--judge", "people", "--seeds", "[0]", "--store", "' '"], "--store: names no file"),
    (["--port", "99999"], "--port: "),
    (["--answer_minutes", "-1"], "--answer_minutes: "),
    (["run.yaml"], "run.yaml: not understood"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_before_anything_starts(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_or_a_port_that_cannot_be_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(*_: object) -> None:
        raise AssertionError("Ray starts")

    monkeypatch.setattr(command, "ray_session", start)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert command.main(["--output", "file/runs"]) == 2
    assert "output: cannot write to " in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        people = ["--judge", "people", "--seeds", "[0]", "--rewards", "[preferences]"]
        assert command.main([*people, "--port", str(taken.getsockname()[1])]) == 2
    assert "is taken" in capsys.readouterr().err
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("rounds", [1, 2, 3, 4, 60])
def test_all_is_asked_while_it_can_be_learned_from(rounds: int, tmp_path: Path) -> None:
    settings = _settings(tmp_path, rounds=rounds)
    due = [questions_due(settings, number, 100) for number in range(rounds + 1)]
    assert due[0] == round(settings.comparisons * settings.first_share)
    assert due == sorted(due)
    # Answers to a round's questions are fitted in the next one, and teach the policy in the one after that.
    assert due[max(1, rounds - 2)] == settings.comparisons


@pytest.mark.parametrize("name", FIXED)
def test_a_folder_of_another_run_is_refused(name: str, tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    Path(settings.output).mkdir(parents=True)
    other = settings.model_dump(mode="json") | {name: "other"}
    (Path(settings.output) / "config.yaml").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(BadInput, match=f"another {name}"):
        finished(settings)


@pytest.mark.parametrize("text", ["a: [", "- 1\n"])
def test_a_folder_with_another_config_file_is_refused(text: str, tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    Path(settings.output).mkdir(parents=True)
    (Path(settings.output) / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="move the folder away"):
        finished(settings)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            None,
            "other.db",
            r"asks people in clips.db, not in .*/other.db; give --store .*/seed_3/clips.db,",
        ),
        ("one.db", "two.db", r"asks people in .*/one.db, not in .*/two.db; give --store .*/one.db,"),
        ("one.db", None, "not in clips.db"),
        (
            "postgresql://h/one",
            "postgresql://h/two",
            "one, not in postgresql://h/two; give --store postgresql://h/one,",
        ),
    ],
)
def test_a_run_asks_in_the_store_in_which_it_began(
    before: str | None, after: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    begun, other = (_settings(tmp_path / "runs", judge="people", store=store) for store in (before, after))
    assert not finished(begun)
    name = run_name(begun)
    assert not finished(begun)
    with pytest.raises(BadInput, match=said):
        finished(other)
    assert run_name(begun) == name
    if before is None:
        assert not finished(_settings(tmp_path / "runs", judge="people", store=begun.page().store)), "the same, named"
    (Path(begun.output) / KEPT_FILE).write_text("{", encoding="utf-8")
    with pytest.raises(BadInput, match="cannot be read"):
        finished(begun)


def test_a_page_alone_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("judge: people\nseeds: [0]\n", encoding="utf-8")
    assert pages.main([str(tmp_path / "config.yaml")]) == 2
    assert "no run that asks people has begun there" in capsys.readouterr().err
    for arguments in ([], [str(tmp_path / "config.yaml"), "--port", "8080"]):
        assert pages.main(arguments) == 2
        assert capsys.readouterr().err == "name the config.yaml of a run, and nothing else\n"


def test_the_store_or_the_port_of_a_page_that_cannot_be(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        settings = _settings(tmp_path, judge="people", store=str(tmp_path), port=taken.getsockname()[1])
        taken.listen()
        with pytest.raises(BadInput, match="is taken"), page_beside(settings, tmp_path / "none.yaml"):
            pass
    with pytest.raises(BadInput, match="is a folder"), page_beside(settings, tmp_path / "none.yaml"):
        pass


def _finish(settings: Settings, kind: Any, seed: int, before: float, after: float) -> None:
    folder = Path(settings.one(kind, seed).output)
    folder.mkdir(parents=True)
    result = {"before": before, "after": after, "comparisons": 700}
    (folder / RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")
    row = {"step": 0, "eval_reward": before, "comparisons": 5}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")


def test_the_report_counts_from_the_untrained_policy(tmp_path: Path) -> None:
    settings = load_arguments(Settings, ["--output", str(tmp_path), "--seeds", "[0, 1]"])
    assert report.report_lines(settings) == []
    for seed, learned in ((0, -300.0), (1, -200.0)):
        _finish(settings, "true", seed, -1200.0, -200.0)
        assert "of it by" not in report.report_lines(settings)[-1]
        _finish(settings, "preferences", seed, -1200.0, learned)
    lines = report.report_lines(settings)
    assert "90.0% of it by 700 comparisons" in lines[0]
    assert "100.0% of it" in lines[1]
    assert lines[2] == "2 seeds: 95.0% on average, 90.0% at least"
    report.write_report(settings)
    assert (tmp_path / report.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / report.SUMMARY_FILE).read_text(encoding="utf-8"))["lines"] == lines


@pytest.mark.parametrize("after", [-1200.0, -1300.0])
def test_a_share_of_nothing_is_not_reported(after: float, tmp_path: Path) -> None:
    settings = load_arguments(Settings, ["--output", str(tmp_path), "--seeds", "[0]"])
    _finish(settings, "true", 0, -1200.0, after)
    _finish(settings, "preferences", 0, -1200.0, -1000.0)
    [line] = report.report_lines(settings)
    assert "taught nothing" in line


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
    settings = _settings(tmp_path / "here", rounds=30)
    threads = torch.get_num_threads()
    # As in an actor: sums of several threads are rounded in another order.
    torch.set_num_threads(1)
    try:
        assert _run(settings)
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
    here, there = _series(settings), {name: one.values for name, one in History.read(folder).series.items()}
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

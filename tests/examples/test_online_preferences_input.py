"""What the online preference loop refuses before anything starts, what it asks when, and its report."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from examples.online_preferences import __main__ as command
from examples.online_preferences import page as pages
from examples.online_preferences import report
from examples.online_preferences.page import page_beside
from examples.online_preferences.roles import questions_due
from examples.online_preferences.run import FIXED, RESULT_FILE, finished
from examples.online_preferences.run_name import KEPT_FILE, run_name
from examples.online_preferences.settings import Settings
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.reading.loading import load_arguments
from tests.examples.online_runs import settings_in

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
    settings = settings_in(tmp_path, rounds=rounds)
    due = [questions_due(settings, number, 100) for number in range(rounds + 1)]
    assert due[0] == round(settings.comparisons * settings.first_share)
    assert due == sorted(due)
    # Answers to a round's questions are fitted in the next one, and teach the policy in the one after that.
    assert due[max(1, rounds - 2)] == settings.comparisons


@pytest.mark.parametrize("name", FIXED)
def test_a_folder_of_another_run_is_refused(name: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    Path(settings.output).mkdir(parents=True)
    other = settings.model_dump(mode="json") | {name: "other"}
    (Path(settings.output) / "config.yaml").write_text(json.dumps(other), encoding="utf-8")
    with pytest.raises(BadInput, match=f"another {name}"):
        finished(settings)


@pytest.mark.parametrize("text", ["a: [", "- 1\n"])
def test_a_folder_with_another_config_file_is_refused(text: str, tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
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
    begun, other = (settings_in(tmp_path / "runs", judge="people", store=store) for store in (before, after))
    assert not finished(begun)
    name = run_name(begun)
    assert not finished(begun)
    with pytest.raises(BadInput, match=said):
        finished(other)
    assert run_name(begun) == name
    if before is None:
        assert not finished(settings_in(tmp_path / "runs", judge="people", store=begun.page().store)), "the same, named"
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
        settings = settings_in(tmp_path, judge="people", store=str(tmp_path), port=taken.getsockname()[1])
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

"""`rlhf label` and `rlhf compare` as commands: bad input, exports, prompts and answers from files."""

import json
import os
import re
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.labelling import CompareConfig, FileAnswers, LabelConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk, DeskSettings
from rlhf_ray.feedback.labelling.items import NewItem
from rlhf_ray.feedback.labelling.writers import AnswerFile, NoAnswers, different_answers
from rlhf_ray.jobs.people import compare, label
from rlhf_ray.jobs.people import page as feedback_page
from tests.browser.site import free_port
from tests.feedback.labelling_cases import draft, label_all, open_desk, prompts

ROWS = [
    {"prompt": "写一首诗", "responses": ["春眠不觉晓", "床前明月光", "白日依山尽"]},
    {"prompt": "What is RLHF?", "responses": ["Learning from people.", "A method."], "class": "open_qa"},
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return tmp_path


def _config(folder: Path, changes: dict[str, Any]) -> list[str]:
    settings: dict[str, Any] = {"store": "labels.db", "answers": {"kind": "file", "path": "answers.jsonl"}}
    for key, value in changes.items():
        settings[key] = value
    (folder / "label.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return ["label", "label.yaml"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"stor": "x.db"}, "label.yaml:.*stor: unknown key. Perhaps you meant store"),
    "unknown kind of answers": ({"answers": {"kind": "files", "path": "x"}}, "answers: .*file"),
    "no such file of answers": ({"answers": {"kind": "file", "path": "nowhere.jsonl"}}, "answers.path: no such file"),
    "no such model": (
        {"answers": {"kind": "model", "model": {"path": "./nowhere"}}},
        "answers.model.path: no such dir",
    ),
    "one answer a prompt": ({"answers_per_prompt": 1}, "answers_per_prompt: .*greater than or equal to 2"),
    "ten answers a prompt": ({"answers_per_prompt": 10}, "answers_per_prompt: .*less than or equal to 9"),
    "prompts beside a file": ({"prompts": {"path": "answers.jsonl"}}, "prompts: answers of kind file bring"),
    "a store of another kind": ({"store": "mysql://localhost/labels"}, "store: .*not of kind 'mysql'"),
    "a password in the config": (
        {"store": "postgresql://anna:geheim@host/labels"},
        "store: holds a password.*PGPASSWORD",
    ),
    "a URL without a database": ({"store": "postgresql://anna@host"}, "store: names no database"),
    "a URL of SQLite without a path": ({"store": "sqlite://labels.db"}, "store: .*sqlite:///path"),
    "an empty store": ({"store": " "}, "store: names no file"),
    "a folder as store": ({"store": "."}, r"store: \. is a folder"),
    "another file as store": ({"store": "answers.jsonl"}, "store: answers.jsonl: .*not a database"),
    "a port that is none": ({"port": 70000}, "port: .*less than or equal to 65535"),
    "an address of another machine": ({"host": "203.0.113.7", "token_file": "t"}, "host: cannot listen on 203.0.113.7"),
    "a name that is no address": ({"host": "no.such.host.invalid", "token_file": "t"}, "host: no.such.host.invalid: "),
    "overlap of nobody": ({"overlap_annotators": 1}, "overlap_annotators: .*greater than or equal to 2"),
    "overlap above 1": ({"overlap": 1.5}, "overlap: .*less than or equal to 1"),
    "no lease": ({"lease_minutes": 0}, "lease_minutes: .*or equal to 0.001, not 0"),
    "a language that there is not": ({"language": "de"}, "language: .*zh.*en"),
    "an export of another format": ({"export": "labels.csv"}, r"export: ends in \.jsonl, \.parquet or \.tsv"),
    "an export of no store": ({"export": "out.jsonl"}, "store: no such file: labels.db"),
    "an export into a folder": ({"export": "out.jsonl/../../"}, "export: ends in"),
    "engines that do not fit": (
        {"answers": {"kind": "rollout", "model": {"path": "x"}, "rollout": {"on": "gpus"}}},
        "answers.rollout.on: no group is named 'gpus'",
    ),
    "a short token": ({"host": "0.0.0.0", "token_file": "short.txt"}, "token_file: short.txt must hold one word"),
    "a token file that is a folder": ({"host": "0.0.0.0", "token_file": "."}, r"token_file: cannot use \."),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, words = BAD[case]
    (folder / "short.txt").write_text("1234")
    assert cli.main(_config(folder, changes)) == 2
    said = capsys.readouterr().err
    assert re.search(words, said), said
    assert said.startswith("rlhf: ")
    assert "geheim" not in said
    assert "Traceback" not in said


def test_a_taken_port_is_said_before_anything_is_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(_config(folder, {"port": port})) == 2
    assert (
        f"port: {port} on 127.0.0.1 is taken; stop what listens there, or set another: --port"
        in capsys.readouterr().err
    )


BAD_ROWS = {
    "a single answer": ({"prompt": "p", "responses": ["only"]}, "holds 1 texts"),
    "ten answers": ({"prompt": "p", "responses": [str(n) for n in range(10)]}, "holds 10 texts"),
    "an empty answer": ({"prompt": "p", "responses": ["a", " "]}, "response 2` is empty"),
    "no answers": ({"prompt": "p"}, "has no columns `prompt` and `completion`"),
    "answers that are numbers": ({"prompt": "p", "responses": [1, 2]}, "must be text"),
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_bad_rows_of_answers_are_named_by_line(case: str, folder: Path) -> None:
    row, words = BAD_ROWS[case]
    (folder / "answers.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(BadInput, match=rf"(?s)answers.jsonl:2: .*{words}"):
        AnswerFile(FileAnswers(kind="file", path="answers.jsonl"))


def test_bad_prompts_are_named_by_line(folder: Path) -> None:
    (folder / "prompts.jsonl").write_text('{"prompt": "fine"}\n{"prompt": 3}\n')
    config = load_job(
        "label",
        _config(folder, {"answers": {"kind": "model", "model": {"path": "x/y"}}, "prompts": {"path": "prompts.jsonl"}})[
            1:
        ],
    )
    assert isinstance(config, LabelConfig)
    assert config.prompts is not None
    with pytest.raises(BadInput, match=r"prompts.jsonl:2: .*text or a list of messages"):
        feedback_page.read_pool(config.prompts)


def test_rows_of_one_prompt_are_put_together_and_repetitions_dropped(folder: Path) -> None:
    rows = [{"prompt": "p", "completion": text} for text in ("a", "b", "a", "c")] + [{"prompt": "q", "completion": "a"}]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = AnswerFile(FileAnswers(kind="file", path="answers.jsonl", version="v7"))
    (item,) = file.items(count=2)
    assert (item.answers, item.versions) == (("a", "b"), ("v7", "v7"))
    assert file.report.left_out.total() == 1


def test_what_generate_and_an_export_name_as_version_is_kept(folder: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "a", "model": "sft"},
        {"prompt": "p", "responses": ["b", "c"], "versions": ["x", "y"]},
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (item,) = AnswerFile(FileAnswers(kind="file", path="answers.jsonl")).items(9)
    assert item.versions == ("sft", "x", "y")


def test_classes_come_from_the_rows_or_by_rules(folder: Path) -> None:
    items = list(AnswerFile(FileAnswers(kind="file", path="answers.jsonl")).items(9))
    assert [item.prompt_class for item in items] == ["generation", "open_qa"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "tsv"])
def test_export_from_the_command(kind: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk = open_desk("labels.db")
    desk.items.add(prompts(3))
    label_all(desk, "anna", (2, 1, 3))
    desk.database.close()
    assert cli.main([*_config(folder, {}), "--export", f"out.{kind}"]) == 0
    assert capsys.readouterr().out == f"3 labels in out.{kind}\n"
    assert (folder / f"out.{kind}").stat().st_size > 100


def test_export_of_choices_says_who_won(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    desk = open_desk("labels.db", task="compare")
    desk.items.add(prompts(4, answers=2))
    for number, ranks in enumerate(((1, 2), (2, 1), (2, 1), (1, 1))):
        item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
        desk.assignments.save("anna", item.id, str(number), draft(*ranks), [0, 1], 1)
    compare.run(_compare(export="out.jsonl"))
    said = capsys.readouterr().out
    assert "4 labels in out.jsonl" in said
    rows = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert [row["winner"] for row in rows] == ["a", "b", "b", "tie"]
    assert "b preferred, all: 62.5% (" in said


def _compare(**changes: Any) -> CompareConfig:
    side = {"kind": "file", "path": "answers.jsonl"}
    return CompareConfig.model_validate({"store": "labels.db", "a": side, "b": side, "port": free_port()} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"a": {"kind": "model", "model": {"path": "x/a"}}, "b": {"kind": "model", "model": {"path": "x/b"}}},
            "need prompts",
        ),
        ({"prompts": {"path": "answers.jsonl"}}, "prompts: answers of kind file bring"),
        ({"a": {"kind": "file", "path": "nowhere.jsonl"}}, "a.path: no such file"),
        ({"b": ...}, "b: missing"),
        ({"answers": {"kind": "file", "path": "answers.jsonl"}}, "answers: unknown key"),
    ],
)
def test_bad_comparisons_are_one_clear_line(
    changes: dict[str, Any], words: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    side = {"kind": "file", "path": "answers.jsonl"}
    settings = {"store": "labels.db", "a": side, "b": side} | changes
    (folder / "c.yaml").write_text(yaml.safe_dump({key: one for key, one in settings.items() if one is not ...}))
    assert cli.main(["compare", "c.yaml"]) == 2
    assert words in capsys.readouterr().err


def test_two_files_without_a_common_prompt_cannot_be_compared(folder: Path) -> None:
    (folder / "a.jsonl").write_text('{"prompt": "p", "completion": "x"}\n')
    (folder / "b.jsonl").write_text('{"prompt": "q", "completion": "y"}\n')
    sides = {key: {"kind": "file", "path": f"{key}.jsonl"} for key in "ab"}
    with pytest.raises(BadInput, match="no prompt is answered by both"):
        compare.run(_compare(**sides))


def test_pairs_that_say_the_same_are_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"a": [("p", "x"), ("q", "same"), ("r", "1")], "b": [("p", "y"), ("q", "same")]}
    for key, pairs in rows.items():
        lines = [json.dumps({"prompt": prompt, "completion": text}) + "\n" for prompt, text in pairs]
        (folder / f"{key}.jsonl").write_text("".join(lines))
    seen: list[Desk] = []
    monkeypatch.setattr(compare, "serve", lambda desk, _: seen.append(desk))
    compare.run(_compare(**{key: {"kind": "file", "path": f"{key}.jsonl", "version": key.upper()} for key in "ab"}))
    store = Database("labels.db")
    sheet = Desk(store, "compare", [], DeskSettings()).draw("anna")
    assert sheet
    assert sheet.item.answers == ("x", "y")
    assert sheet.item.versions == ("A", "B")
    assert seen[0].items.count() == 1


class _Writer:
    """Answers in turn from a list."""

    version = "fake"

    def __init__(self, *answers: list[str]) -> None:
        self.answers = list(answers)

    def write(self, prompt: object, count: int) -> list[str]:
        return self.answers.pop(0) if self.answers else ["again"]


def test_a_model_is_asked_until_answers_differ() -> None:
    assert different_answers(_Writer(["a", "a", " "], ["b", "a"], ["c", "d"]), "p", 3) == ["a", "b", "c"]
    assert different_answers(_Writer(["a"], ["b"]), "p", 4) == ["a", "b", "again"]
    with pytest.raises(NoAnswers, match="always the same answer"):
        different_answers(_Writer(), "p", 2)
    with pytest.raises(NoAnswers, match="only empty answers"):
        different_answers(_Writer(*[[""]] * 4), "p", 2)


def test_a_prompt_that_was_drawn_is_answered_once_for_all_its_annotators(tmp_path: Path) -> None:
    desk = Desk(
        Database(str(tmp_path / "l.db")), "label", [_Writer(["a", "b"], ["c", "d"])], DeskSettings(answers_per_prompt=2)
    )
    desk.items.add([NewItem("p", "chat", "fake")])
    first = desk.draw("anna")
    assert first
    assert desk.current("anna").item == first.item  # type: ignore[union-attr]
    own = desk.typed("bob", "my own")
    assert own.answers == ("c", "d")
    assert own.item.versions == ("fake", "fake")


@pytest.mark.parametrize(("typed", "words"), [(" ", "empty"), ("x" * 20_001, "at most 20000")])
def test_typed_prompts_have_a_length(typed: str, words: str, tmp_path: Path) -> None:
    desk = Desk(Database(str(tmp_path / "l.db")), "label", [_Writer()], DeskSettings())
    with pytest.raises(BadInput, match=words):
        desk.typed("anna", typed)


def test_a_file_answers_no_other_prompts(tmp_path: Path) -> None:
    desk = Desk(Database(str(tmp_path / "l.db")), "label", [], DeskSettings())
    desk.items.add([NewItem("known", "chat", "file", ("a", "b"), ("v", "v"))])
    assert desk.typed("anna", "known").answers == ("a", "b")
    with pytest.raises(NoAnswers, match="come from a file"):
        desk.typed("anna", "unknown")


def test_a_token_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "secrets" / "token"
    token = feedback_page._token(str(file))
    assert feedback_page._token(str(file)) == token
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    assert feedback_page._token(None) != feedback_page._token(None)


def test_a_model_directory_answers(tiny_model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What people rank comes from the weights that the label names, any prompt of the pool or typed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("The film\n刚收到货\n", encoding="utf-8")
    config = LabelConfig.model_validate(
        {
            "store": "l.db",
            "port": free_port(),
            "answers": {
                "kind": "model",
                "model": {"path": str(tiny_model.tied), "dtype": "float32"},
                "max_new_tokens": 8,
            },
            "prompts": {"path": "prompts.txt"},
            "answers_per_prompt": 3,
        }
    )
    sheets = []

    def visit(desk: Desk, _: object) -> None:
        sheets.extend([desk.draw("anna"), desk.typed("bob", "Great value")])

    monkeypatch.setattr(label, "serve", visit)
    label.run(config)
    for sheet in sheets:
        assert len(set(sheet.answers)) == 3
        assert set(sheet.item.versions) == {f"{tiny_model.tied}@{sheet.item.versions[0][-12:]}"}

"""Local files that a config names: those that would be overwritten while they are read."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli

GENERATE: dict[str, Any] = {"model": {"path": "model"}, "data": {"path": "d.jsonl"}}
SCORE: dict[str, Any] = {"rewards": [{"kind": "function", "function": "f.py:f", "name": "f"}]}
LABEL: dict[str, Any] = {"store": "labels.db", "answers": {"kind": "file", "path": "d.jsonl"}}
COMPARE: dict[str, Any] = {"store": "labels.db", "a": LABEL["answers"], "b": {"kind": "file", "path": "other.jsonl"}}
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "generate": ("generate", GENERATE | {"output": "d.jsonl"}, "output: d.jsonl is read as data.path"),
    "spelt otherwise": (
        "generate",
        GENERATE | {"output": "./sub/../d.jsonl"},
        "is read as data.path; name another file",
    ),
    "a link": ("generate", GENERATE | {"output": "link.jsonl"}, "output: link.jsonl is read as data.path"),
    "a URL": ("generate", GENERATE | {"output": "file://{here}/d.jsonl"}, "is read as data.path"),
    "score": (
        "score",
        SCORE | {"data": {"path": "d.jsonl"}, "output": "d.jsonl"},
        "output: d.jsonl is read as data.path",
    ),
    "in the folder": (
        "score",
        SCORE | {"data": {"path": "."}, "output": "d.jsonl"},
        "output: d.jsonl is read as data.path",
    ),
    "by a glob": ("score", SCORE | {"data": {"path": "*.jsonl"}, "output": "{here}/d.jsonl"}, "is read as data.path"),
    "label": ("label", LABEL | {"export": "d.jsonl"}, "export: d.jsonl is read as answers.path; name another file"),
    "compare": ("compare", COMPARE | {"export": "other.jsonl"}, "export: other.jsonl is read as b.path"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "f.py").write_text("def f(prompts, completions): ...")
    for name in ("d.jsonl", "other.jsonl"):
        (tmp_path / name).write_text('{"prompt": "p", "completion": "c"}\n')
    (tmp_path / "link.jsonl").symlink_to("d.jsonl")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_data_are_not_overwritten(here: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    verb, settings, message = CASES[case]
    text = yaml.safe_dump(settings).replace("{here}", str(here))
    (here / "config.yaml").write_text(text)
    before = {path: path.read_bytes() for path in here.glob("*.jsonl")}
    assert cli.main([verb, "config.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert message in line
    assert {path: path.read_bytes() for path in here.glob("*.jsonl")} == before


@pytest.mark.parametrize("arguments", [["d.jsonl"], ["other.jsonl", "./d.jsonl"], ["*.jsonl"], ["."], ["link.jsonl"]])
def test_nor_are_those_of_convert(here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert cli.main(["convert", *arguments, "--output", "d.jsonl"]) == 2
    assert f"output: d.jsonl is read as {arguments[-1]}; name another file" in capsys.readouterr().err


def test_another_file_beside_them_is_none_of_them(here: Path) -> None:
    assert cli.main(["convert", "other.jsonl", "d.jsonl", "--output", "new.jsonl"]) == 0
    assert cli.main(["convert", "d.jsonl", "--output", "new.jsonl"]) == 0

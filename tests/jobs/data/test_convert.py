"""`rlhf convert` writes what the readers of the jobs read."""

import json

import pytest

from rlhf_ray import cli
from rlhf_ray.config.data import DataConfig
from rlhf_ray.data.columns import ranking_of
from rlhf_ray.data.sources import read_rows

HH = [
    {"chosen": f"\n\nHuman: 问 {n}\n\nAssistant: 好\t的", "rejected": f"\n\nHuman: 问 {n}\n\nAssistant: no\nway"}
    for n in range(3)
]


@pytest.fixture
def hh(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hh.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HH))
    return tmp_path


def rows_of(path):
    return [row for _, row in read_rows(DataConfig(path=str(path)))]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_pairs_become_columns(hh, name, capsys):
    assert cli.main(["convert", "hh.jsonl", "--output", name]) == 0
    assert "3 rows in" in capsys.readouterr().out
    rows = rows_of(hh / name)
    assert [row["prompt"][0]["content"] for row in rows] == ["问 0", "问 1", "问 2"]
    assert ranking_of(rows[0]).responses == ["好\t的", "no\nway"]


def test_rank_lists_hold_tabs_and_line_breaks_but_no_ties(hh, capsys):
    ties = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [0, 1, 1]}
    ranked = {"prompt": "p ", "responses": ["worse", "better"], "ranks": [1, 0]}
    (hh / "ties.jsonl").write_text(json.dumps(ties) + "\n" + json.dumps(ranked) + "\n")
    assert cli.main(["convert", "hh.jsonl", "ties.jsonl", "--output", "out.tsv"]) == 0
    assert "1 row left out: rank lists hold no ties" in capsys.readouterr().out
    texts = [list(ranking_of(row).responses) for row in rows_of(hh / "out.tsv")]
    assert texts == [[f"问 {n}\n好\t的", f"问 {n}\nno\nway"] for n in range(3)] + [["p better", "p worse"]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hh.jsonl", "--output", "out.xml"], "output: ends in .jsonl, .parquet or .tsv, not 'out.xml'"),
        (["none.jsonl", "--output", "out.jsonl"], "none.jsonl: no such file or directory"),
        (["hh.jsonl"], "output: missing"),
        (["hh.jsonl", "--output", "out.jsonl", "--layout", "hhh"], "layout"),
        (["hh.jsonl", "--output", "out.jsonl", "--layout", "sharegpt"], "is no row of layout sharegpt"),
        (["text.jsonl", "--output", "out.tsv"], "text.jsonl:1: has no columns `chosen` and `rejected`"),
        (["half.jsonl", "--output", "out.jsonl"], "half.jsonl:1: JSON cannot hold it: 'utf-8' codec can't encode"),
        (["hh.jsonl", "--output", "."], "is a folder; name a file in it"),
    ],
)
def test_bad_input(hh, capsys, arguments, message):
    (hh / "text.jsonl").write_text('{"text": "a"}\n')
    (hh / "half.jsonl").write_text('{"text": "a", "note": "\\ud83d"}\n')
    assert cli.main(["convert", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert {file.name for file in hh.iterdir()} == {"hh.jsonl", "text.jsonl", "half.jsonl"}, "nothing half-written"

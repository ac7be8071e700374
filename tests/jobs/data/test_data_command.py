"""The command `rlhf data`: what is wrong with its config or rows is one line, and what it did is said."""

import os
import re

import pytest
import yaml

from rlhf_ray import cli
from tests.jobs.data.cleaning_jobs import read_rows, write_rows

GOOD = {"output": "out", "sources": [{"kind": "files", "path": "d.jsonl"}]}
CONFIGS = {
    "no sources": ({"sources": []}, r"c\.yaml:\d+: sources: "),
    "two of one name": ({"sources": GOOD["sources"] * 2}, r"sources: two are named 'd\.jsonl'; give each a `name`"),
    "no such file": ({"sources": [{"kind": "files", "path": "e.jsonl"}]}, r"sources\.0\.path: no such file or direc"),
    "unknown kind": ({"sources": [{"kind": "ftp", "path": "d"}]}, r"sources\.0.*kind.*files, http"),
    "unknown layout": (
        {"sources": [{"kind": "files", "path": "d.jsonl", "layout": "sharegtp"}]},
        r"layout: .*sharegpt",
    ),
    "not a URL": (
        {"sources": [{"kind": "http", "name": "x", "url": "example.com"}]},
        r"sources\.0\.url: begins with http:// or https://",
    ),
    "name with a path": ({"sources": [{"kind": "http", "name": "../x", "url": "http://x"}]}, r"name: names a file"),
    "pages in two ways": (
        {"sources": [{"kind": "http", "name": "x", "url": "http://x", "next": "n", "offset_parameter": "o"}]},
        r"offset_parameter: pages are found by `next` or by offset",
    ),
    "cursor from nowhere": (
        {"sources": [{"kind": "http", "name": "x", "url": "http://x", "next_parameter": "n"}]},
        r"next_parameter: takes the cursor that stands at `next`",
    ),
    "lengths crossed": ({"length": {"min_characters": 9, "max_characters": 3}}, r"length\.min_characters: 9 is above"),
    "no languages": ({"language": {"keep": []}}, r"language\.keep: "),
    "unknown language": ({"language": {"keep": ["cn"]}}, r"language\.keep\.0: .*zh"),
    "share above one": ({"quality": {"min_letters": 20}}, r"quality\.min_letters: .*1"),
    "similarity of one": ({"duplicates": {"near": 1}}, r"duplicates\.near: "),
    "unknown rule": ({"lenght": {}}, r"c\.yaml:\d+: lenght: unknown key\. Perhaps you meant length"),
    "classifier of nothing": ({"classifier": {}}, r"classifier\.path: give a trained classifier, or examples"),
    "classifier of both": (
        {"classifier": {"path": "x", "high": {"path": "d.jsonl"}, "low": {"path": "d.jsonl"}}},
        r"classifier\.path: a trained classifier takes no examples",
    ),
    "classifier that is not there": ({"classifier": {"path": "x.safetensors"}}, r"classifier\.path: no such file"),
    "examples that are not there": (
        {"classes": {"examples": {"path": "x.jsonl"}}},
        r"classes\.examples\.path: no such file or directory",
    ),
    "sample without classes": ({"sample": {"shares": {"chat": 1}}}, r"sample: goes by class, so `classes` must be set"),
    "sample of an unknown class": (
        {"classes": {}, "sample": {"shares": {"chats": 1}}},
        r"sample: no class is named 'chats'; classes are generation, open_qa",
    ),
    "sample of nothing": ({"classes": {}, "sample": {"shares": {"chat": 0}}}, r"sample\.shares: are 0 or more"),
    "splits that do not add up": (
        {"splits": {"a": {"share": 0.5}, "b": {"share": 0.3}}},
        r"splits: the shares add up to 0\.8, not 1",
    ),
    "split with a path": ({"splits": {"a/b": {"share": 1}}}, r"splits: 'a/b' cannot name a file here"),
    "split as the audit": ({"splits": {"audit": {"share": 1}}}, r"splits: 'audit' cannot name a file here"),
    "split of another format": (
        {"splits": {"train.csv": {"share": 1}}},
        r"splits: 'train\.csv': parts are written as \.jsonl or \.parquet",
    ),
    "splits of one file": (
        {"splits": {"a": {"share": 0.5}, "a.jsonl": {"share": 0.5}}},
        r"splits: 'a' and 'a\.jsonl' are one file, a\.jsonl",
    ),
    "prompts nearer than same": ({"near_prompts": 1.2}, r"near_prompts: .*less than 1"),
    "output is there": ({"output": "."}, r"output: \S* exists; remove it"),
    "output below a file": ({"output": "d.jsonl/out"}, r"output: cannot write to d\.jsonl/out: d\.jsonl is a file"),
    "output far away": ({"output": "s3://bucket/out"}, r"output: .* is a URL; name a local folder"),
    "too few examples": (
        {"classifier": {"high": {"path": "d.jsonl"}, "low": {"path": "d.jsonl"}}},
        r"class 'high' has 2 examples; at least 20 are needed",
    ),
    "examples without classes": (
        {"classes": {"examples": {"path": "d.jsonl"}}},
        r"classes\.examples: d\.jsonl: each row needs `prompt` and `class`",
    ),
    "too many bad rows": (
        {"sources": [{"kind": "files", "path": "bad.jsonl"}]},
        r"bad\.jsonl: 2 of 3 rows cannot be used.*\n.*bad\.jsonl:2: not JSON",
    ),
    "no rows": ({"sources": [{"kind": "files", "path": "empty.jsonl"}]}, r"empty\.jsonl: holds no rows"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_bad_input_is_one_line_that_names_the_key(tmp_path, monkeypatch, capsys, case):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", [{"text": "今天天气很好"}, {"text": "The weather is fine"}])
    (tmp_path / "bad.jsonl").write_text('{"text": "a b c"}\noops\n{"no": 1}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    changes, message = CONFIGS[case]
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD | changes))
    assert cli.main(["data", "c.yaml"]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told), told
    assert "Traceback" not in told
    left = {"c.yaml", "d.jsonl", "bad.jsonl", "empty.jsonl"}
    assert set(os.listdir(tmp_path)) == left, "nothing is left behind"


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "d.jsonl", [{"text": "今天天气很好 a@b.co"}] * 3)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(GOOD))
    assert cli.main(["data", "c.yaml", "--seed", "3"]) == 0
    told = capsys.readouterr().out
    assert "3 rows in" in told
    assert "2 removed: duplicates.exact" in told
    assert "3 masked: email" in told
    assert read_rows(tmp_path / "out" / "train.jsonl") == [{"text": "今天天气很好 <EMAIL>"}]

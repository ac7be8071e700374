"""Parts of `rlhf data` in Parquet hold what those in JSON lines do, and tables of messages become trees."""

import hashlib
import json
import os

import pytest

from rlhf_ray.config.data import RowSource
from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.data.sources import read_rows as data_rows
from tests.jobs.data.cleaning_jobs import job, preferences, read_rows, write_rows

EXTRAS = [
    {"prompt": "写一首诗，关于春天的雨", "completion": "好雨知时节", "score": 1, "tags": ["a", "b"]},
    {"prompt": "How do I boil an egg?", "completion": "In water, 8 minutes.", "score": 2.5, "source": {"page": 3}},
    {"prompt": "Name a colour of the sky", "completion": "Blue.", "source": {"book": "b"}, "tags": []},
    {"text": "A row of another kind, without a prompt.", "score": None},
]


def without_nulls(value):
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return value


def test_parquet_holds_the_same_rows(tmp_path):
    numbered = [{**row, "number": number} for number in range(8) for row in EXTRAS]
    path = write_rows(tmp_path / "d.jsonl", numbered + preferences(120, 3)[:40])
    settings = {"classes": {}, "duplicates": None}
    written = {}
    for ending in (".jsonl", ".parquet"):
        splits = {f"rows{ending}": {"share": 0.8}, f"asked{ending}": {"share": 0.2, "content": "prompts"}}
        out = job(tmp_path / ending[1:], [path], splits=splits, **settings)
        files = sorted(file.name for file in out.iterdir() if file.suffix == ending and file.stem != "audit")
        assert files == [f"asked{ending}", f"rows{ending}"]
        manifest = json.loads((out / "manifest.json").read_text())["splits"]
        for name in splits:
            content = (out / name).read_bytes()
            assert (manifest[name]["file"], manifest[name]["bytes"]) == (name, len(content))
            assert manifest[name]["sha256"] == hashlib.sha256(content).hexdigest()
            read = [row for _, row in data_rows(RowSource(path=str(out / name)))]
            assert len(read) == manifest[name]["rows"] > 0
            written[name] = [without_nulls(row) for row in read]
    for stem in ("rows", "asked"):
        assert written[f"{stem}.parquet"] == written[f"{stem}.jsonl"]
    assert {"text", "prompt", "score", "source", "tags", "chosen"} <= set().union(*written["rows.parquet"])


def test_what_parquet_cannot_hold_is_named_before_all_is_cleaned(tmp_path):
    rows = [{"text": f"今天天气很好 {number}", "note": number} for number in range(30)]
    rows[17]["note"] = "seventeen"
    path = write_rows(tmp_path / "d.jsonl", rows)
    message = r"d\.jsonl:18: Parquet cannot hold column 'note', whose values differ in type .*; name the part \.jsonl"
    with pytest.raises(BadInput, match=message):
        job(tmp_path / "out", [path], splits={"train.parquet": {"share": 1}}, duplicates=None)
    assert os.listdir(tmp_path) == ["d.jsonl"]


def test_parquet_of_masked_numbers_and_of_objects_without_keys(tmp_path):
    rows = [{"text": f"今天天气很好 {number}", "order": 4111111111110000 + number, "meta": {}} for number in range(200)]
    path = write_rows(tmp_path / "d.jsonl", rows)
    out = job(tmp_path / "out", [path], splits={"train.parquet": {"share": 1}}, duplicates=None)
    masked = json.loads((out / "manifest.json").read_text())["masked"]["card"]
    read = [row for _, row in data_rows(RowSource(path=str(out / "train.parquet")))]
    orders = [row["order"] for row in read]
    assert len(orders) == 200
    assert orders.count("<CARD>") == masked > 0
    assert all(order in ("<CARD>", str(row["order"])) for order, row in zip(orders, rows, strict=True))
    assert all(row["meta"] is None for row in read)


def test_what_a_later_batch_makes_inexact_is_named(tmp_path, small_pieces):
    rows = [{"text": f"今天天气很好 {number}", "id": 2**53 + 1 + number} for number in range(1500)]
    rows[1400]["id"] = 0.5
    path = write_rows(tmp_path / "d.jsonl", rows)
    with pytest.raises(BadInput, match=r"d\.jsonl:1401: Parquet cannot hold column 'id'.*above 2\^53"):
        job(tmp_path / "out", [path], splits={"train.parquet": {"share": 1}}, duplicates=None, privacy=None)
    assert os.listdir(tmp_path) == ["d.jsonl"]


def test_parquet_of_nothing(tmp_path):
    path = write_rows(tmp_path / "d.jsonl", [{"text": "short"}] * 3)
    with pytest.raises(RlhfError, match="no row was kept"):
        job(tmp_path / "out", [path], length={"min_characters": 100}, splits={"train.parquet": {"share": 1}})


def test_message_tables_are_cleaned_as_trees(tmp_path, small_pieces):
    rows = []
    for number in range(400):
        names = [f"{number}{letter}" for letter in "abc"]
        rows.append({"message_id": names[0], "role": "prompter", "text": f"第{number}个问题是什么，谁知道呢？"})
        for rank, name in enumerate(names[1:]):
            answer = {"message_id": name, "parent_id": names[0], "role": "assistant", "rank": rank}
            rows.append(answer | {"text": f"第{number}个回答，共两个，这是{rank}号"})
    path = write_rows(tmp_path / "oasst.messages.jsonl", rows)
    out = job(tmp_path / "out", [path], duplicates=None)
    kept = read_rows(out / "train.jsonl")
    assert len(kept) == 400
    assert kept[7]["responses"] == ["第7个回答，共两个，这是0号", "第7个回答，共两个，这是1号"]
    assert kept[7]["prompt"] == [{"role": "user", "content": "第7个问题是什么，谁知道呢？"}]

"""Rows written come back as they were, in both formats, and what a format cannot hold is refused at the beginning."""

import datetime
import io
import json
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.column_types import ColumnTypes, MixedColumn
from rlhf_ray.data.row_files import ROW_GROUP, open_rows, set_apart


def written(path: str, rows: list[dict[str, Any]], added: dict[str, type]) -> list[dict[str, Any]]:
    stream = io.BytesIO()
    known = [{name: value for name, value in row.items() if name not in added} for row in rows]
    with open_rows(stream, path, known, added) as file:
        for row in rows:
            file.write(row)
    stream.seek(0)
    if path.endswith(".parquet"):
        return pyarrow.parquet.read_table(stream).to_pylist()
    return [json.loads(line) for line in stream.read().decode().splitlines()]


@pytest.mark.parametrize("path", ["rows.jsonl", "rows.parquet"])
def test_rows_come_back(path: str) -> None:
    count = 2 * ROW_GROUP + 1
    rows = [
        {
            "prompt": [{"role": "user", "content": f"第{number}行\n"}],
            "note": None if number % 3 else "x",
            "score": None if number < ROW_GROUP + 5 else number / 7,
        }
        for number in range(count)
    ]
    assert written(path, rows, {"score": float}) == rows


def test_what_hub_data_sets_hold_becomes_plain_in_json() -> None:
    [row] = written(
        "rows.jsonl", [{"day": datetime.date(2024, 5, 1), "vector": np.array([1, 2]), "one": np.int64(3)}], {}
    )
    assert row == {"day": "2024-05-01", "vector": [1, 2], "one": 3}


@pytest.mark.parametrize(
    ("path", "rows", "words"),
    [
        ("a.jsonl", [{"image": b"\x00"}], "a.jsonl: JSON lines cannot hold .*bytes.*; write .parquet"),
        ("a.parquet", [{"note": 1}, {"note": "one"}], "a.parquet: Parquet cannot hold column 'note'.*write .jsonl"),
        *(
            (path, [{"note": "x\ud800"}], rf"{path}: a text of these rows has '.ud800', which is not valid Unicode")
            for path in ("a.jsonl", "a.parquet")
        ),
    ],
)
def test_what_a_format_cannot_hold(path: str, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        open_rows(io.BytesIO(), path, rows, {})


def test_parquet_holds_objects_without_keys_as_null() -> None:
    rows = [{"meta": {}, "tags": [{}, {}], "deep": {"a": {}, "b": number}, "some": {}} for number in range(3)]
    rows[1]["some"] = {"page": 1}
    found = written("a.parquet", rows, {})
    assert found[0] == {"meta": None, "tags": [None, None], "deep": {"a": None, "b": 0}, "some": {"page": None}}
    assert found[1]["some"] == {"page": 1}


def test_numbers_beside_masked_ones_are_texts() -> None:
    numbers = [6222020200000000, "<CARD>", None]
    rows = [{"order": number, "list": [number, 1], "of": {"whom": number}, "other": 5} for number in numbers]
    texts = ["6222020200000000", "<CARD>", None]
    assert written("a.parquet", rows, {}) == [
        {"order": text, "list": [text, "1"], "of": {"whom": text}, "other": 5} for text in texts
    ]


BIG = 2**53 + 1


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, "<CARD>", 2], "string"),
        (["<CARD>", 1, "<MOBILE>"], "string"),
        (["<CARD>", 3, 1.5], "string"),
        (["<CARD>", "none"], "string"),
        ([1, "<CARD>", "none"], None),
        (["<CARD>", "none", 1], None),
        (["none", 1], None),
        ([1, "none"], None),
        (["<CARD>", True], None),
        ([0.5, True], None),
        ([[0.5, True]], None),
        ([{"a": 0.5}, {"a": True}, {"a": "<CARD>"}], None),
        ([1, 0.5], "double"),
        ([BIG, 1], "int64"),
        ([BIG, 0.5], None),
        ([-BIG, 1, 0.5], None),
        ([0.5, BIG], None),
        ([{}, {}], "null"),
        ([{}, None, {"a": 1}], "struct<a: int64>"),
        ([{"a": [BIG]}, {"a": [0.5]}], None),
        ([{}, 1], None),
        ([2**63], None),
    ],
)
@pytest.mark.parametrize("batch", [1, 2, 9])
def test_types_are_the_same_in_whatever_batches_rows_come(values: list[Any], kind: str | None, batch: int) -> None:
    types = ColumnTypes()
    rows = [{"x": value} for value in values]

    def add() -> None:
        for start in range(0, len(rows), batch):
            types.add(rows[start : start + batch])

    if kind is None:
        with pytest.raises(MixedColumn):
            add()
    else:
        add()
        assert str(types.schema().field("x").type) == kind


def test_columns_of_the_same_name_stand_apart() -> None:
    given = {"reward": 1, "original_reward": 2, "prompt": 3, "other": 4}
    assert set_apart(given, ["reward", "prompt"]) == {
        "original_reward": 1,
        "original_original_reward": 2,
        "original_prompt": 3,
        "other": 4,
    }

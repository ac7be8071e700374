"""Open-Assistant's flat tables give what the same messages give as trees, whatever the format and the order."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_ray.config.data import DataConfig, RowSource
from rlhf_ray.data import pieces
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.layouts.reading import own_rows
from rlhf_ray.data.pieces import read_piece, survey
from rlhf_ray.data.sources import read_rows

Message = dict[str, Any]


def tree(name: str, lang: str = "zh") -> dict[str, Any]:
    def answer(text: str, rank: int | None, *replies: Message, deleted: bool = False) -> Message:
        return {"text": f"{name} {text}", "role": "assistant", "rank": rank, "deleted": deleted, "replies": [*replies]}

    further = {"text": f"{name} 还有呢？", "role": "prompter", "replies": [answer("有", 1), answer("没有, 没有", 0)]}
    replies = [answer("second", 1), answer("first\nline", 0, further), answer("gone", 2, deleted=True)]
    return {
        "message_tree_id": f"{name}-0",
        "prompt": {"text": f"{name} 问？", "role": "prompter", "lang": lang, "replies": replies},
    }


TREES = [tree("t1"), tree("t2", "en"), tree("t3")]


def messages(whole: dict[str, Any]) -> list[Message]:
    """The rows of a tree, as they are published: each with all columns."""
    rows: list[Message] = []

    def add(node: Message, parent: str | None) -> None:
        name = f"{whole['message_tree_id'][:-2]}-{len(rows)}"
        told = {key: node.get(key) for key in ("text", "role", "rank")}
        told |= {"deleted": node.get("deleted", False), "lang": whole["prompt"]["lang"], "review_count": 3}
        rows.append({"message_id": name, "parent_id": parent, "message_tree_id": whole["message_tree_id"], **told})
        for reply in node["replies"]:
            add(reply, name)

    add(whole["prompt"], None)
    return rows


def write(path: Path, rows: list[Message]) -> str:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            # As pandas writes whole numbers in a column that has gaps.
            writer.writerows(row | {"rank": "" if row["rank"] is None else f"{row['rank']}.0"} for row in rows)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path: str, layout: Any = "auto") -> tuple[list[Message], list[str]]:
    """Rows, in the order of their trees, and what is wrong with the others."""
    found, bad = [], []
    for place, row in read_rows(DataConfig(path=path, layout=layout)):
        if isinstance(row, BadRow):
            bad.append(f"{place}: {row}")
        else:
            found += own_rows(row, layout)
    return sorted(found, key=lambda row: str(row.get("message_tree_id"))), bad


@pytest.mark.parametrize("layout", ["auto", "open_assistant", "open_assistant_conversations"])
@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.parquet"])
def test_a_table_in_any_order_is_its_trees(tmp_path: Path, name: str, layout: str) -> None:
    rows = [row for one in TREES for row in messages(one)]
    # Answers of one message keep their order; it stands for the rank where none is given.
    random.Random(3).shuffle(rows)
    found, bad = read(write(tmp_path / name, rows), layout)
    expected, _ = read(write(tmp_path / "trees.jsonl", TREES), layout)
    assert bad == []
    assert len(expected) == (3 if layout.endswith("conversations") else 6)

    def comparable(row: Message) -> Message:
        ranked = sorted(zip(row.get("ranks", []), row.get("responses", []), strict=True))
        return {**row, "responses": [text for _, text in ranked], "ranks": [rank for rank, _ in ranked]}

    def ordered(given: list[Message]) -> list[Message]:
        return sorted(map(comparable, given), key=lambda row: (row["message_tree_id"], str(row.get("prompt"))))

    assert ordered(found) == ordered(expected)


def test_what_is_left_out_of_an_export_is_nothing(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if value is not None} for row in messages(TREES[0])]
    for row in rows:
        del row["message_tree_id"]
    found, bad = read(write(tmp_path / "d.jsonl", rows))
    assert (len(found), bad) == (2, [])
    assert {row["message_tree_id"] for row in found} == {"t1-0"}, "a tree's name is its first message's"


def test_as_rows_of_ones_own_they_stay_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", messages(TREES[0]))
    found, _ = read(path, "trl")
    assert [row["text"] for row in found] == [row["text"] for row in messages(TREES[0])]
    conversation = [{"message_id": "7", "role": "assistant", "text": "no parent, so no table"}]
    assert read(write(tmp_path / "e.jsonl", conversation))[0] == conversation


def test_a_large_table_is_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 100)
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 100)
    found = survey(RowSource(path=write(tmp_path / "d.jsonl", messages(TREES[0]))))
    assert len(found.pieces) == 1
    assert len(list(read_piece(found.pieces[0]))) == 1
    assert len(survey(RowSource(path=str(tmp_path / "d.jsonl"), layout="trl")).pieces) > 3


ROOT = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "问"}
BAD: dict[str, tuple[list[Message], str]] = {
    "a name twice": (
        [ROOT, ROOT | {"text": "again"}],
        r"d\.jsonl:2: message_id 'a' stands at \S*d\.jsonl:1 too",
    ),
    "a parent that is not there": (
        [ROOT, ROOT | {"message_id": "b", "parent_id": "x"}, ROOT | {"message_id": "c", "parent_id": "b"}],
        r"d\.jsonl:2: its parent_id 'x' is no message_id here; lost with it: 1 below it",
    ),
    "a circle": (
        [ROOT, ROOT | {"message_id": "b", "parent_id": "c"}, ROOT | {"message_id": "c", "parent_id": "b"}],
        r"d\.jsonl:2: each of the messages above it answers another, and none is the first",
    ),
    "a rank that is no number": (
        [ROOT, ROOT | {"message_id": "b", "rank": "best"}],
        "2: `rank` must be a whole number",
    ),
    "a rank in between": ([ROOT, ROOT | {"message_id": "b", "rank": 0.5}], "2: `rank` must be a whole number, not 0.5"),
    "a rank that is true": ([ROOT, ROOT | {"message_id": "b", "rank": True}], "2: `rank` must be a whole number"),
    "deleted perhaps": ([ROOT, ROOT | {"message_id": "b", "deleted": "perhaps"}], "2: `deleted` must be true or false"),
    "no text": (
        [ROOT, {"message_id": "b", "role": "assistant"}],
        "2: is no message as the rows before it: it has no te",
    ),
    "a row of another kind": ([ROOT, {"prompt": "p", "completion": "c"}], "has no message_id, role, text"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_messages_are_named_and_the_others_used(case: str, tmp_path: Path) -> None:
    import re

    rows, words = BAD[case]
    rows = [*rows, *messages(TREES[1])]
    found, bad = read(write(tmp_path / "d.jsonl", rows))
    assert re.search(words, "\n".join(bad)), bad
    assert [row["message_tree_id"] for row in found] == ["t2-0"] * 2


def test_a_broken_line_spoils_itself_alone(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "d.jsonl", messages(TREES[0])))
    path.write_text("oops\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    found, bad = read(str(path))
    assert len(found) == 2
    assert [line.split(": ")[1] for line in bad] == ["not JSON"]

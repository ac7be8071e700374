"""Readers: every format and every column layout gives the same rows."""

import csv
import json

import numpy as np
import pytest

from rlhf_ray.config.data import DataConfig, PromptDataConfig, RankingDataConfig, TextDataConfig
from rlhf_ray.data.loading import read_answered, read_prompts, read_rankings, read_supervised
from rlhf_ray.data.rows import RankedRow, ranked_batch, supervised_batch

ROWS = [
    {"prompt": "这部电影很", "completion": "好看。", "id": "1"},
    {"prompt": 'a,b "c"\nnew line', "completion": "tab\there \u2028 x", "id": "2"},
    {"prompt": "emoji 😀 and عربى", "completion": "ok", "id": "3"},
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.csv", "d.parquet", "saved"])
def test_all_formats_give_the_same_rows(tmp_path, tokenizer, name):
    path = write(tmp_path / name, ROWS)
    loaded = read_prompts(PromptDataConfig(path=path), tokenizer)
    assert [row.prompt for row in loaded.rows] == [row["prompt"] for row in ROWS]
    assert loaded.rows[1].columns == {"completion": ROWS[1]["completion"], "id": "2"}
    assert [tokenizer.decode(row.prompt_ids) for row in loaded.rows] == [row["prompt"] for row in ROWS]
    reference = read_prompts(PromptDataConfig(path=write(tmp_path / "other.jsonl", ROWS)), tokenizer)
    assert loaded.fingerprint == reference.fingerprint
    answered = read_answered(DataConfig(path=path)).rows
    assert [(a.prompt, a.completion) for a in answered] == [(r["prompt"], r["completion"]) for r in ROWS]
    assert answered[0].columns == {"id": "1"}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_byte_order_marks_and_line_endings_leave_no_trace(tmp_path, tokenizer, ending, mark):
    file = tmp_path / "d.txt"
    file.write_bytes((mark + ending.join(["好看", "", "第二行\u2028还是第二行", ""])).encode())
    loaded = read_prompts(PromptDataConfig(path=str(file)), tokenizer)
    assert [row.prompt for row in loaded.rows] == ["好看", "第二行\u2028还是第二行"]
    (tmp_path / "d.tsv").write_bytes((mark + f"好\t坏{ending}").encode())
    [ranking] = read_rankings(RankingDataConfig(path=str(tmp_path / "d.tsv")), tokenizer).rows
    assert [tokenizer.decode(text) for text in ranking.texts] == ["好<|end|>", "坏<|end|>"]


def test_globs_directories_and_limit(tmp_path, monkeypatch, tokenizer):
    for name in ("b.txt", "a.txt", "inner/c.jsonl", "inner/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"prompt": name}) if name.endswith("jsonl") else name)
    monkeypatch.chdir(tmp_path)

    def prompts(path, **options):
        return [row.prompt for row in read_prompts(PromptDataConfig(path=path, **options), tokenizer).rows]

    assert prompts("*.txt") == prompts(f"{tmp_path}/[ab].txt") == ["a.txt", "b.txt"]
    assert prompts(".") == prompts(str(tmp_path)) == ["a.txt", "b.txt", "inner/c.jsonl"]
    assert prompts(".", limit=2) == ["a.txt", "b.txt"]
    assert prompts(f"file://{tmp_path}/a.txt") == ["a.txt"]


@pytest.mark.parametrize("name", ["d.parquet", "saved"])
def test_tables_hold_rows_of_several_kinds(tmp_path, tokenizer, name):
    """A table has all columns in each row; those of another kind are null, and say nothing."""
    rows = [{"prompt": "p", "completion": " c", "note": None}, {"text": "ab cd", "note": "n"}]
    columns = {key: None for row in rows for key in row}
    path = write(tmp_path / name, [columns | row for row in rows])
    found = read_supervised(TextDataConfig(path=path), tokenizer).rows
    assert ["".join(learned(tokenizer, row)) for row in found] == ["p c<|end|>", "ab cd<|end|>"]
    assert read_answered(DataConfig(path=path)).rows[0].columns == {"note": None}, "a row's own column may be null"


def learned(tokenizer, row):
    return tokenizer.decode(row.prompt_ids), tokenizer.decode(row.response_ids[row.written])


def test_supervised_layouts(tmp_path, tokenizer):
    user, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "r"}
    path = write(
        tmp_path / "d.jsonl",
        [
            {"prompt": "p", "completion": " c"},
            {"prompt": [user], "completion": [answer]},
            {"messages": [user, answer, user, answer, user]},
            {"text": "ab cd"},
        ],
    )
    rows = read_supervised(TextDataConfig(path=path), tokenizer).rows
    assert learned(tokenizer, rows[0]) == ("p", " c<|end|>")
    assert learned(tokenizer, rows[1]) == ("<|user|>q<|end|><|assistant|>", "r<|end|>")
    assert learned(tokenizer, rows[2]) == ("<|user|>q<|end|><|assistant|>", "r<|end|>r<|end|>")
    assert tokenizer.decode(rows[2].response_ids) == "r<|end|><|user|>q<|end|><|assistant|>r<|end|>"
    assert "".join(learned(tokenizer, rows[3])) == "ab cd<|end|>"
    assert len(rows[3].prompt_ids) == 1, "the first token has nothing before it to be predicted from"

    whole = read_supervised(TextDataConfig(path=path, loss_on="all"), tokenizer).rows
    assert ["".join(learned(tokenizer, row)) for row in whole[:2]] == [
        "p c<|end|>",
        "<|user|>q<|end|><|assistant|>r<|end|>",
    ]
    batch = supervised_batch(rows)
    np.testing.assert_array_equal(batch.lengths, [row.length for row in rows])
    np.testing.assert_array_equal(batch.written, np.concatenate([row.written for row in rows]))


def test_long_rows_are_cut_at_the_end_and_do_not_pretend_to_end_there(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"text": "The film was wonderful. " * 9}, {"text": "ok"}])
    loaded = read_supervised(TextDataConfig(path=path, max_tokens=10), tokenizer)
    assert loaded.rows[0].length == 10
    assert tokenizer.eos_token_id not in loaded.rows[0].response_ids
    assert loaded.rows[1].response_ids[-1] == tokenizer.eos_token_id
    assert "1 row shortened: longer than max_tokens (10)" in "\n".join(loaded.report.lines())


def test_ranking_layouts_agree(tmp_path, tokenizer):
    user = {"role": "user", "content": "q"}

    def turn(text):
        return [{"role": "assistant", "content": text}]

    text = [
        {"prompt": "p ", "chosen": "good", "rejected": "bad"},
        {"prompt": "", "chosen": "p good", "rejected": "p bad"},
        {"chosen": "p good", "rejected": "p bad"},
        {"prompt": "p ", "responses": ["bad", "good"], "ranks": [4, 2]},
        {"prompt": "p ", "responses": ["good", "bad"]},
    ]
    messages = [
        {"prompt": [user], "chosen": turn("good"), "rejected": turn("bad")},
        {"chosen": [user, *turn("good")], "rejected": [user, *turn("bad")]},
        {"prompt": [user], "responses": ["good", "bad"]},
    ]
    for rows, expected in (
        (text, "p {}<|end|>"),
        (messages, "<|user|>q<|end|><|assistant|>{}<|end|>"),
    ):
        loaded = read_rankings(RankingDataConfig(path=write(tmp_path / "d.jsonl", rows)), tokenizer)
        assert len(loaded.rows) == len(rows)
        for ranking in loaded.rows:
            texts = {int(rank): tokenizer.decode(ids) for rank, ids in zip(ranking.ranks, ranking.texts, strict=True)}
            assert texts == {0: expected.format("good"), 1: expected.format("bad")}


def test_rank_list_file_to_batch(tmp_path, tokenizer):
    (tmp_path / "d.tsv").write_text("a\tb\tc\nd\te\n")
    batch = ranked_batch(read_rankings(RankingDataConfig(path=str(tmp_path / "d.tsv")), tokenizer).rows)
    assert batch.groups.tolist() == [0, 0, 0, 1, 1]
    assert batch.ranks.tolist() == [0, 1, 2, 0, 1]
    assert batch.batch.prompt_lengths.tolist() == [0] * 5
    ends = batch.batch.offsets[1:] - 1
    assert (batch.batch.ids[ends] == tokenizer.eos_token_id).all()


def test_how_the_texts_of_a_ranking_begin_is_their_prompt():
    texts = [[1, 2, 3, 4], [1, 2, 5], [1, 2], [6, 2], [7], [8, 9], [8, 9]]
    rows = [np.array(ids, np.int32) for ids in texts]
    rankings = [
        RankedRow(tuple(rows[part]), np.arange(2, dtype=np.int32)) for part in (np.s_[:3], np.s_[3:5], np.s_[5:])
    ]
    batch = ranked_batch(rankings).batch
    assert batch.prompt_lengths.tolist() == [2, 2, 2, 0, 0, 2, 2]
    assert np.split(batch.ids, batch.offsets[1:-1])[1].tolist() == [1, 2, 5]
    assert batch.lengths.tolist() == [len(ids) for ids in texts]


def test_long_texts_of_a_ranking_lose_their_beginning(tmp_path, tokenizer):
    path = write(tmp_path / "d.jsonl", [{"prompt": "The film. " * 30, "chosen": "good", "rejected": "bad"}])
    [ranking] = read_rankings(RankingDataConfig(path=path, max_tokens=12), tokenizer).rows
    assert [len(text) for text in ranking.texts] == [12, 12]
    assert tokenizer.decode(ranking.texts[0]).endswith(" good<|end|>")


def test_fingerprint_sees_texts_and_order(tmp_path, tokenizer):
    def fingerprint(*texts):
        (tmp_path / "d.txt").write_text("\n".join(texts))
        return read_prompts(PromptDataConfig(path=str(tmp_path / "d.txt")), tokenizer).fingerprint

    assert fingerprint("ab", "c") == fingerprint("ab", "c")
    assert len({fingerprint("ab", "c"), fingerprint("c", "ab"), fingerprint("a", "bc"), fingerprint("ab")}) == 4

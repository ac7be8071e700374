"""What a data file can do wrong: each time a message that names file and line and says what to do."""

import gzip
import json
import os
import re
import socket

import pytest

from rlhf_ray.config.data import DataConfig, PromptDataConfig, RankingDataConfig, TextDataConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.loading import read_answered, read_prompts, read_rankings, read_supervised

GOOD = b'{"prompt": "a"}\n'
PAIR = b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'


def rows(*values):
    return "".join(json.dumps(value) + "\n" for value in values).encode()


CASES = {
    # name: (kind, file, content, message)
    "not JSON": (
        "prompts",
        "d.jsonl",
        GOOD + b"{prompt: a}\n",
        r"d\.jsonl:2: not JSON: .*each line must be one object",
    ),
    "cut line": ("prompts", "d.jsonl", GOOD + b'\n\n{"prompt": "a', r"d\.jsonl:4: not JSON: Unterminated string"),
    "a list on a line": ("prompts", "d.jsonl", GOOD + b"[1]\n", r"d\.jsonl:2: is a list, not an object such as"),
    "no column": (
        "prompts",
        "d.jsonl",
        rows({"question": "q"}),
        r"d\.jsonl:1: has no column `prompt`.*: question\. Re",
    ),
    "empty prompt": ("prompts", "d.jsonl", rows({"prompt": " "}), r"d\.jsonl:1: `prompt` is empty"),
    "null prompt": ("prompts", "d.jsonl", rows({"prompt": None}), r":1: `prompt` must be text or a list of messages"),
    "number as prompt": ("prompts", "d.jsonl", rows({"prompt": 3}), r":1: `prompt` must be text or a list of messages"),
    "no role": (
        "prompts",
        "d.jsonl",
        rows({"prompt": [{"content": "a"}]}),
        r":1: turn 1 of `prompt` must be an object",
    ),
    "half a character": ("prompts", "d.jsonl", GOOD + b'{"prompt": "\\ud83d"}\n', r":2: `prompt` is not valid Unicode"),
    "GBK": ("prompts", "d.txt", "好看".encode("gbk"), r"d\.txt:1: not UTF-8: byte 0xba.*iconv -f GB18030 -t UTF-8"),
    "UTF-16": ("prompts", "d.txt", "好看".encode("utf-16"), r"d\.txt: is UTF-16; convert it with: iconv"),
    "empty file": ("prompts", "d.jsonl", b"\n\n", r"d\.jsonl: holds no rows"),
    "rank list as prompts": (
        "prompts",
        "d.tsv",
        b"a\tb\n",
        r"d\.tsv:1: is a line of a rank list \(\.tsv\), which has no",
    ),
    "UTF-16, big end first": (
        "prompts",
        "d.jsonl",
        GOOD.decode().encode("utf-16-be"),
        r"d\.jsonl: is not text in UTF-8",
    ),
    "UTF-16 in CSV": ("prompts", "d.csv", "prompt\na\n".encode("utf-16"), r"d\.csv: is UTF-16; convert it"),
    "UTF-16 in JSON": ("prompts", "d.json", "[]".encode("utf-16"), r"d\.json: is UTF-16; convert it with: iconv"),
    "UTF-32": ("prompts", "d.txt", "好看".encode("utf-32"), r"d\.txt: is UTF-32; convert it with: iconv"),
    "gzip without .gz": (
        "prompts",
        "d.jsonl",
        gzip.compress(GOOD),
        r"d\.jsonl: is compressed by gzip; let its name end",
    ),
    "gzip twice": (
        "prompts",
        "d.jsonl.gz",
        gzip.compress(gzip.compress(GOOD)),
        r"d\.jsonl\.gz: is compressed by gzip; let",
    ),
    "zip": ("prompts", "d.csv", b"PK\x03\x04..", r"d\.csv: is a zip archive; unpack it"),
    "Parquet without .parquet": (
        "prompts",
        "d.jsonl",
        b"PAR1..",
        r"d\.jsonl: is Parquet; let its name end in \.parquet",
    ),
    "pointer of Git LFS": (
        "prompts",
        "d.jsonl",
        b"version https://git-lfs.github.com/spec/v1\n",
        r"d\.jsonl: is a pointer of Git LFS; fetch",
    ),
    "number of 5,000 digits": (
        "prompts",
        "d.jsonl",
        GOOD + b'{"x": ' + b"9" * 5000 + b"}",
        r"d\.jsonl:2: .*4300 digits",
    ),
    "such a number in JSON": ("prompts", "d.json", b"[" + b"9" * 5000 + b"]", r"d\.json: not JSON .*4300 digits"),
    "JSON nested too deep": ("prompts", "d.json", b"[" * 100_000, r"d\.json: not JSON .*nested too deep"),
    "JSON of one row": ("prompts", "d.json", b'{"messages": [{"role": "user"}]}', r"no column `prompt` but `mess"),
    "unknown format": ("prompts", "d.xml", b"<a/>", r"d\.xml: unknown format '\.xml'; formats are \.jsonl, \.json"),
    "prompts too long": (
        "prompts",
        "d.txt",
        b"abc " * 99,
        r"no row is left to use; left out: 1 row: prompt longer than max_prompt_tok",
    ),
    "CSV with a cell too many": (
        "prompts",
        "d.csv",
        b"prompt\na\nb,c\n",
        r"d\.csv:3: has 2 cells, the header has 1; qu",
    ),
    "CSV with an open quote": ("prompts", "d.csv", b'prompt\n"a\n', r"d\.csv:\d: not CSV: unexpected end of data"),
    "CSV with a column twice": ("prompts", "d.csv", b"a,a\n1,2\n", r"d\.csv:1: the header line names columns twice"),
    "CSV in GBK": ("prompts", "d.csv", "prompt\n好看\n".encode("gbk"), r"d\.csv:2: `prompt` is not valid Unicode"),
    "JSON that is broken": ("prompts", "d.json", b'[{"prompt": "a"},\n}]', r"d\.json:2: not JSON: Expecting value"),
    "JSON of numbers": ("prompts", "d.json", b"[1, 2]", r"d\.json, row 1: is a number, not an object"),
    "not Parquet": ("prompts", "d.parquet", b"PAR1 no", r"d\.parquet: not a Parquet file that can be read"),
    "one text": (
        "rankings",
        "d.tsv",
        b"a\tb\nonly\n",
        r"d\.tsv:2: holds 1 texts, a ranking has 2 to 9; texts are set a",
    ),
    "ten texts": ("rankings", "d.tsv", b"\t".join(b"abcdefghij"[i : i + 1] for i in range(10)), r":1: holds 10 texts"),
    "empty place": ("rankings", "d.tsv", b"a\t\tb\n", r"d\.tsv:1: `text 2 of the line` is empty"),
    "a text twice": ("rankings", "d.tsv", b"a\tb\ta\n", r":1: the same text stands at ranks 0 and 2: 'a'"),
    "equal pair": (
        "rankings",
        "d.jsonl",
        rows({"chosen": "a", "rejected": "a"}),
        r":1: .*beginning of the other \(or b",
    ),
    "ranks too few": (
        "rankings",
        "d.jsonl",
        rows({"prompt": "p", "responses": ["a", "b"], "ranks": [0]}),
        r":1: 1 ranks for 2 responses",
    ),
    "ranks as text": (
        "rankings",
        "d.jsonl",
        rows({"prompt": "p", "responses": ["a", "b"], "ranks": ["0", "1"]}),
        r":1: `ranks` must be a list of whole numbers, smallest best",
    ),
    "all tied": (
        "rankings",
        "d.jsonl",
        rows({"prompt": "p", "responses": ["a", "b"], "ranks": [1, 1]}),
        r":1: all ranks are equal, so the row prefers nothing",
    ),
    "chosen only": ("rankings", "d.jsonl", rows({"chosen": "a"}), r":1: has no columns `chosen` and `rejected`, nor"),
    "same after truncation": (
        "rankings",
        "d.jsonl",
        rows({"prompt": "", "chosen": "x" + "abc " * 99, "rejected": "y" + "abc " * 99}),
        r"no row is left to use; left out: 1 row: texts of different rank are the same within max_tokens \(64\)",
    ),
    "no answer to learn": (
        "text",
        "d.jsonl",
        rows({"messages": [{"role": "user", "content": "q"}]}),
        r":1: .*no turn of",
    ),
    "completion null": (
        "text",
        "d.jsonl",
        rows({"prompt": "a", "completion": None}),
        r":1: `completion` must be text or",
    ),
    "text and messages": (
        "text",
        "d.jsonl",
        rows({"prompt": "a", "completion": [{"role": "assistant", "content": "b"}]}),
        r":1: `prompt` and `completion` must both be text or both be messages",
    ),
    "prompt fills all": (
        "text",
        "d.jsonl",
        rows({"prompt": "abc " * 99, "completion": "b"}),
        r"1 row: nothing to learn with",
    ),
    "completion missing": (
        "answered",
        "d.jsonl",
        rows({"prompt": "a"}),
        r":1: has no columns `prompt` and `completion`",
    ),
}
READ = {
    "prompts": lambda path, tokenizer: read_prompts(PromptDataConfig(path=path, max_prompt_tokens=64), tokenizer),
    "text": lambda path, tokenizer: read_supervised(TextDataConfig(path=path, max_tokens=64), tokenizer),
    "rankings": lambda path, tokenizer: read_rankings(RankingDataConfig(path=path, max_tokens=64), tokenizer),
    "answered": lambda path, _: read_answered(DataConfig(path=path)),
}


@pytest.mark.parametrize("case", CASES)
def test_message(tmp_path, tokenizer, case):
    kind, name, content, message = CASES[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput) as caught:
        READ[kind](str(tmp_path / name), tokenizer)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert str(tmp_path / name) in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("path", ["none.jsonl", "./none", "a/b/none", "none/*.txt", "/none"])
def test_nothing_there(tmp_path, monkeypatch, tokenizer, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=r"no such file|no file here"):
        read_prompts(PromptDataConfig(path=path), tokenizer)


def test_few_bad_rows_are_counted_and_shown(tmp_path, tokenizer):
    file = tmp_path / "d.jsonl"
    file.write_bytes(GOOD * 50 + b"oops\n" + GOOD * 49)
    with pytest.raises(BadInput, match=r"1 of 100 rows cannot be used, more than bad_rows 0 allows"):
        read_prompts(PromptDataConfig(path=str(file), bad_rows=0), tokenizer)
    loaded = read_prompts(PromptDataConfig(path=str(file), bad_rows=0.01), tokenizer)
    assert len(loaded.rows) == 99
    assert [row.prompt_id for row in loaded.rows][49:51] == ["49", "51"], "ids are positions in the data set"
    assert "99 of 100 rows used" in (text := "\n".join(loaded.report.lines()))
    assert f"{file}:51: not JSON" in text
    file.write_bytes(GOOD * 49 + b"oops\n" * 2)
    with pytest.raises(BadInput, match="2 of 51 rows cannot be used"):
        read_prompts(PromptDataConfig(path=str(file)), tokenizer)


@pytest.mark.parametrize("name", ["d.jsonl", "folder"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, monkeypatch, tokenizer, name, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    file = tmp_path / ("folder/d.jsonl" if name == "folder" else name)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to(os.devnull)
    else:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(file.relative_to(tmp_path)))
    with pytest.raises(BadInput, match=rf"d\.jsonl: is a {kind}.*; write the rows to a file"):
        read_prompts(PromptDataConfig(path=name), tokenizer)


@pytest.mark.parametrize("path", [" ", "loop.jsonl", "none://d.jsonl"])
def test_paths_that_name_nothing(tmp_path, monkeypatch, tokenizer, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(BadInput, match=r"data\.path|no such file|cannot be read") as caught:
        read_prompts(PromptDataConfig(path=path), tokenizer)
    assert "\n" not in str(caught.value)


def test_a_name_with_the_characters_of_a_pattern_is_a_name_first(tmp_path, tokenizer):
    for name in ("d[1].jsonl", "d?.jsonl", "d1.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": name}))
    for name in ("d[1].jsonl", "d?.jsonl"):
        loaded = read_prompts(PromptDataConfig(path=str(tmp_path / name)), tokenizer)
        assert [row.prompt for row in loaded.rows] == [name]


def test_rows_that_are_all_bad_are_named_whatever_share_may_be(tmp_path, tokenizer):
    (tmp_path / "d.jsonl").write_bytes(b"oops\n")
    with pytest.raises(BadInput, match=r"no row is left to use; 1 row cannot be used:\n.*d\.jsonl:1: not JSON"):
        read_prompts(PromptDataConfig(path=str(tmp_path / "d.jsonl"), bad_rows=1), tokenizer)

"""Rows of other projects become the project's own columns."""

import gzip
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.config.data import DataConfig, RankingDataConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.columns import answered_of, demonstration_of, prompt_of, ranking_of
from rlhf_ray.data.file_formats import RANK_LIST_HEADER, escape, unescape
from rlhf_ray.data.layouts.reading import own_rows
from rlhf_ray.data.layouts.transcripts import split_transcript
from rlhf_ray.data.loading import read_answered, read_rankings
from rlhf_ray.data.sources import read_rows

TREE = {
    "message_tree_id": "t1",
    "prompt": {
        "text": "q",
        "role": "prompter",
        "lang": "en",
        "replies": [
            {"text": "second", "role": "assistant", "rank": 1, "replies": []},
            {
                "text": "first",
                "role": "assistant",
                "rank": 0,
                "replies": [
                    {
                        "text": "more?",
                        "role": "prompter",
                        "replies": [{"text": "yes", "role": "assistant", "rank": None, "replies": []}],
                    },
                    {"text": "thanks", "role": "prompter", "replies": []},
                ],
            },
            {"text": "gone", "role": "assistant", "rank": 2, "deleted": True, "replies": []},
        ],
    },
}


def say(*turns):
    return [{"role": "user" if place % 2 == 0 else "assistant", "content": turn} for place, turn in enumerate(turns)]


def answer(text):
    return [{"role": "assistant", "content": text}]


PAIR = {"prompt": say("问题？"), "chosen": answer("好"), "rejected": answer("坏")}
TALK = {"messages": say("你好", "您好！")}
CASES = {
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "你好"}, {"from": "gpt", "value": "您好！"}]},
        [TALK],
    ),
    "sharegpt with a system column": (
        {"system": "be kind", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        [{"messages": [{"role": "system", "content": "be kind"}, *say("q", "a")]}],
    ),
    "sharegpt preferences": (
        {
            "conversations": [{"from": "human", "value": "问题？"}],
            "chosen": {"from": "gpt", "value": "好"},
            "rejected": {"from": "gpt", "value": "坏"},
        },
        [PAIR],
    ),
    "medicalgpt, old rewards": (
        {"question": "问题？", "response_chosen": "好", "response_rejected": "坏"},
        [PAIR],
    ),
    "medicalgpt, new rewards": (
        {
            "system": "医生",
            "history": [["早", "早上好"]],
            "question": "问题？",
            "response_chosen": "好",
            "response_rejected": "坏",
        },
        [PAIR | {"prompt": [{"role": "system", "content": "医生"}, *say("早", "早上好", "问题？")]}],
    ),
    "alpaca": (
        {"instruction": "翻译", "input": "hello", "output": "你好", "id": 7},
        [{"prompt": say("翻译\nhello"), "completion": answer("你好"), "id": 7}],
    ),
    "alpaca without an answer": ({"instruction": "Name a tree.", "input": ""}, [{"prompt": say("Name a tree.")}]),
    "alpaca with several answers": (
        {"instruction": "q", "output": ["best", "worst"]},
        [{"prompt": say("q"), "responses": ["best", "worst"]}],
    ),
    "colossalchat": (
        {
            "context": [{"from": "human", "content": "问题？"}],
            "chosen": [{"from": "assistant", "content": "好"}],
            "rejected": [{"from": "assistant", "content": "坏"}],
        },
        [PAIR],
    ),
    "colossalchat conversation": (
        {"messages": [{"from": "user", "content": "你好"}, {"from": "assistant", "content": "您好！"}]},
        [TALK],
    ),
    "colossalchat prompt": ({"messages": [{"from": "user", "content": "你好"}]}, [{"prompt": say("你好")}]),
    "hh": (
        {
            "chosen": "\n\nHuman: a: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: good",
            "rejected": "\n\nHuman: a: b\n\nAssistant: c\n\nHuman: d\n\nAssistant: bad",
        },
        [{"prompt": say("a: b", "c", "d"), "chosen": answer("good"), "rejected": answer("bad")}],
    ),
    "hh as text": ({"text": "\n\nHuman: 你好\n\nAssistant: 您好！"}, [TALK]),
    "deepspeed_chat": (
        {
            "prompt": "\n\nHuman: 问题？\n\nAssistant:",
            "response": " 好",
            "chosen": " 好",
            "rejected": " 坏",
        },
        [PAIR | {"completion": answer("好")}],
    ),
    "safe_rlhf": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
        [
            {
                "prompt": say("q"),
                "responses": ["a", "b"],
                "ranks": [1, 0],
                "better_response_id": 1,
                "safer_response_id": 0,
            }
        ],
    ),
    "open_assistant": (
        TREE,
        [
            {
                "prompt": say("q"),
                "responses": ["second", "first"],
                "ranks": [1, 0],
                "message_tree_id": "t1",
                "lang": "en",
            }
        ],
    ),
    "trl preferences": ({"prompt": "p", "chosen": "c", "rejected": "r"}, None),
    "trl implicit preferences": ({"chosen": "p c", "rejected": "p r"}, None),
    "trl unpaired preferences": ({"prompt": "p", "completion": "c", "label": True}, None),
    "trl messages": ({"messages": say("q", "a")}, None),
    "trl stepwise": ({"prompt": "p", "completions": ["1", "2"], "labels": [True, False]}, None),
    "rank list": ({"ranked_texts": ["a", "b"]}, None),
}


@pytest.mark.parametrize("name", CASES)
def test_auto_knows_the_layout(name):
    row, expected = CASES[name]
    assert own_rows(row, "auto") == ([row] if expected is None else expected)
    layout = name.split()[0].rstrip(",")
    if layout not in ("trl", "rank"):
        assert own_rows(row, layout) == expected


def test_read_rows_are_understood_by_the_jobs():
    ranked = [own_rows(CASES[name][0], "auto")[0] for name in ("medicalgpt, old rewards", "hh", "safe_rlhf")]
    assert [ranking_of(row).responses[ranking_of(row).ranks.index(0)] for row in ranked] == ["好", "good", "b"]
    [alpaca] = own_rows(CASES["alpaca"][0], "auto")
    assert demonstration_of(alpaca).completion == answer("你好")
    assert answered_of(alpaca).completion == "你好"
    assert prompt_of(alpaca)[0] == say("翻译\nhello")


def test_trees_as_conversations():
    assert own_rows(TREE, "open_assistant_conversations") == [
        {"messages": say("q", "first", "more?", "yes"), "message_tree_id": "t1", "lang": "en"}
    ]


def test_the_safer_answer():
    row = CASES["safe_rlhf"][0]
    assert own_rows(row, "safe_rlhf_safer")[0]["ranks"] == [0, 1]


BAD = {
    "unknown speaker": ({"conversations": [{"from": "narrator", "value": "x"}]}, "auto", "is by 'narrator'; speakers"),
    "no speaker": ({"conversations": [{"value": "x"}]}, "auto", "turn 1 of conversations does not say who speaks"),
    "no text": ({"conversations": [{"from": "human", "value": None}]}, "auto", "turn 1 .* has no text"),
    "turn is a number": ({"conversations": [3]}, "auto", "turn 1 .* must be an object"),
    "no turns": ({"conversations": []}, "auto", "`conversations` must be a list of turns"),
    "wrong layout": ({"text": "x"}, "sharegpt", "is no row of layout sharegpt, which has conversations; its columns"),
    "no transcript": ({"chosen": "a", "rejected": "b"}, "hh", "is no row of layout hh, which has chosen and rejected"),
    "transcripts differ early": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"},
        "auto",
        "must share all turns but the last",
    ),
    "transcript without an answer": (
        {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        "auto",
        "`chosen` ends without an answer",
    ),
    "preference for a third": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 2},
        "auto",
        "`better_response_id` must be 0 or 1, not 2",
    ),
    "preference unsaid": (
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": None},
        "auto",
        "`better_response_id` must be 0 or 1, not None",
    ),
    "history of texts": (
        {"history": ["x"], "question": "q", "response_chosen": "a", "response_rejected": "b"},
        "auto",
        r"entry 1 of `history` must be \[question, answer\]",
    ),
    "null instruction": ({"instruction": None, "output": "a"}, "auto", "`instruction` must be text, not null"),
    "answer is a number": ({"instruction": "q", "output": 3}, "auto", "`output` must be text, not int"),
    "tree of strangers": (
        {"prompt": {"text": "q", "role": "owner", "replies": []}},
        "auto",
        "is no message tree",
    ),
    "replies of texts": (
        {"prompt": {"text": "q", "role": "prompter", "replies": ["a"]}},
        "auto",
        "`replies` must be a list of messages",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_rows_say_why(name):
    row, layout, message = BAD[name]
    with pytest.raises(BadRow, match=message):
        own_rows(row, layout)


def test_bad_rows_are_named_by_file_and_line(tmp_path, tokenizer):
    file = tmp_path / "d.jsonl"
    rows = [CASES["safe_rlhf"][0], {**CASES["safe_rlhf"][0], "better_response_id": 5}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(BadInput, match=r"d\.jsonl:2: `better_response_id` must be 0 or 1"):
        read_rankings(RankingDataConfig(path=str(file)), tokenizer)
    assert len(read_rankings(RankingDataConfig(path=str(file), bad_rows=0.5), tokenizer).rows) == 1


def test_trees_with_nothing_to_choose_are_left_out_and_others_give_several_rows(tmp_path, tokenizer):
    again = json.loads(json.dumps(TREE))
    again["prompt"]["replies"][1]["replies"][0]["replies"] = [
        {"text": "a", "role": "assistant", "rank": 0, "replies": []},
        {"text": "b", "role": "assistant", "rank": 0, "replies": []},
        {"text": "c", "role": "assistant", "rank": 1, "replies": []},
    ]
    alone = {"prompt": {"text": "q", "role": "prompter", "replies": []}}
    file = tmp_path / "trees.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(tree) + "\n" for tree in (alone, again))
    loaded = read_rankings(RankingDataConfig(path=str(file)), tokenizer)
    assert [len(row.texts) for row in loaded.rows] == [2, 3]
    assert loaded.report.left_out.total() == 1
    assert loaded.report.used == 2


def test_a_damaged_archive_is_bad_input(tmp_path):
    file = tmp_path / "d.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:40])
    with pytest.raises(BadInput, match=r"d\.jsonl\.gz: cannot be read"):
        read_answered(DataConfig(path=str(file)))


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), min_size=1, max_size=3))
def test_transcripts_split_where_they_were_joined(pairs):
    turns = [text.strip() for pair in pairs for text in pair]
    if not all(turns) or any(speaker in turn for turn in turns for speaker in ("Human:", "Assistant:")):
        return
    text = "".join(f"\n\n{('Human', 'Assistant')[place % 2]}: {turn}" for place, turn in enumerate(turns))
    assert split_transcript(text, "t") == say(*turns)


@given(st.lists(st.text(), min_size=2, max_size=4))
def test_rank_lists_with_our_header_hold_any_text(texts):
    line = "\t".join(map(escape, texts))
    assert "\n" not in line
    assert "\r" not in line
    assert [unescape(text) for text in line.split("\t")] == texts


def test_only_rank_lists_with_our_header_are_unescaped(tmp_path):
    raw, ours = tmp_path / "raw.tsv", tmp_path / "ours.tsv"
    raw.write_text("C:\\temp\tb\n")
    ours.write_text(f"{RANK_LIST_HEADER}\nC:\\\\temp\\r\tline\\nbreak \\x\n")
    assert [row for _, row in read_rows(DataConfig(path=str(raw)))] == [{"ranked_texts": ["C:\\temp", "b"]}]
    assert [row for _, row in read_rows(DataConfig(path=str(ours)))] == [
        {"ranked_texts": ["C:\\temp\r", "line\nbreak \\x"]}
    ]

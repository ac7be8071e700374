"""What turns and rows say beside their texts is read, passed to the template, or refused; never dropped."""

import copy
import json
from typing import Any

import pytest

from rlhf_ray.config.data import DataConfig, PromptDataConfig, RankingDataConfig, TextDataConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.cleaning.texts import texts_of
from rlhf_ray.data.columns import answered_of, demonstration_of, prompt_of, ranking_of
from rlhf_ray.data.layouts.reading import own_rows
from rlhf_ray.data.loading import read_answered, read_prompts, read_rankings, read_supervised
from rlhf_ray.data.sources import read_rows

WITH_TOOLS = (
    "{% if tools %}<|user|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
    "{% for message in messages %}<|{{ 'assistant' if message.role == 'assistant' else 'user' }}|>"
    "{% if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}"
    "{% if message.content %}{{ message['content'] }}{% endif %}"
    "{% for call in message.tool_calls or [] %}"
    "[{{ call.function.name }} {{ call.function.arguments | tojson }}]{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for message in messages %}<|{{ message.role }}|>{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content }}<|end|>{% endgeneration %}{% else %}{{ message.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"function": {"name": "weather", "arguments": {"city": "北京"}}}
USER = {"role": "user", "content": "q"}


def answer(content: Any = "a", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


@pytest.fixture
def with_tools(tokenizer: Any) -> Any:
    """A tokenizer whose template reads tools, their calls and thoughts."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = WITH_TOOLS
    return made


def write(path: Any, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def texts(tokenizer: Any, path: str) -> list[tuple[str, str]]:
    """Of each row all of its text, and what is learned."""
    rows = read_supervised(TextDataConfig(path=path), tokenizer).rows
    wholes = [tokenizer.decode([*row.prompt_ids, *row.response_ids]) for row in rows]
    return [(whole, tokenizer.decode(row.response_ids[row.written])) for whole, row in zip(wholes, rows, strict=True)]


@pytest.mark.parametrize(
    "turn",
    [
        answer("", tool_calls=[CALL]),
        answer(None, tool_calls=[CALL]),
        {"role": "assistant", "tool_calls": [CALL["function"]]},
        answer(
            None, tool_calls=[{"type": "function", "function": {"name": "weather", "arguments": '{"city": "北京"}'}}]
        ),
        answer(None, function_call={"name": "weather", "arguments": '{"city": "北京"}'}),
        answer(None, tool_calls=json.dumps([CALL])),
    ],
)
def test_calls_of_tools_are_learned_however_they_are_written(tmp_path: Any, with_tools: Any, turn: Any) -> None:
    path = write(tmp_path / "d.jsonl", {"messages": [USER, turn], "tools": [TOOL]}, {"messages": [USER, answer()]})
    [(whole, learned), plain] = texts(with_tools, path)
    assert learned == '[weather {"city": "北京"}]<|end|>'
    assert whole.startswith(f"<|user|>{json.dumps(TOOL)}<|end|><|user|>q<|end|><|assistant|>[weather")
    assert plain == ("<|user|>q<|end|><|assistant|>a<|end|>", "a<|end|>")


def test_conversations_of_sharegpt_call_tools_too(tmp_path: Any, with_tools: Any) -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京"}}'},
        {"from": "observation", "value": "20 度"},
        {"from": "gpt", "value": "a", "reasoning": "hm"},
    ]
    [(_, learned)] = texts(
        with_tools, write(tmp_path / "d.jsonl", {"conversations": turns, "tools": json.dumps([TOOL])})
    )
    assert learned == '[weather {"city": "北京"}]<|end|>(hm)a<|end|>'


def test_templates_that_want_arguments_as_text_get_them_so(tmp_path: Any, with_tools: Any) -> None:
    with_tools.chat_template = WITH_TOOLS.replace("call.function.arguments | tojson", "'' + call.function.arguments")
    [(_, learned)] = texts(
        with_tools, write(tmp_path / "d.jsonl", {"messages": [USER, answer(None, tool_calls=[CALL])]})
    )
    assert learned == '[weather {"city": "北京"}]<|end|>'


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_thoughts_are_read_under_each_of_their_names(tmp_path: Any, with_tools: Any, name: str) -> None:
    [(_, learned)] = texts(with_tools, write(tmp_path / "d.jsonl", {"messages": [USER, answer(**{name: "hm"})]}))
    assert learned == "(hm)a<|end|>"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"messages": [USER, answer("a", tool_calls=[CALL])]},
            "passes over `tool_calls` of turn 2; set model.chat_temp",
        ),
        ({"messages": [USER, answer("a", reasoning="hm")]}, "passes over `.*reasoning.*` of turn 2"),
        ({"messages": [USER, answer()], "tools": [TOOL]}, "passes over the tool 'weather' in `tools`"),
        ({"messages": [{**USER, "tools": [TOOL]}, answer()]}, "passes over the tool 'weather' in `tools`"),
        ({"prompt": [USER], "completion": [answer("a", tool_calls=[CALL])]}, "passes over `tool_calls` of turn 2"),
    ],
)
def test_what_the_template_does_not_read_is_refused(tmp_path: Any, tokenizer: Any, row: Any, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        read_supervised(TextDataConfig(path=write(tmp_path / "d.jsonl", row)), tokenizer)


def test_a_template_that_drops_the_text_beside_a_call_is_found_out(tmp_path: Any, with_tools: Any) -> None:
    with_tools.chat_template = WITH_TOOLS.replace("{% if message.content %}", "{% if not message.tool_calls %}")
    path = write(tmp_path / "d.jsonl", {"messages": [USER, answer("let me look", tool_calls=[CALL])]})
    with pytest.raises(BadInput, match="passes over the text beside the call of a tool in turn 2"):
        read_supervised(TextDataConfig(path=path), with_tools)


@pytest.mark.parametrize("key", ["weight", "train", "loss"])
@pytest.mark.parametrize("template", [None, MARKED])
def test_turns_of_weight_zero_are_not_learned(tmp_path: Any, tokenizer: Any, key: str, template: str | None) -> None:
    made = copy.deepcopy(tokenizer)
    made.chat_template = template or made.chat_template
    no, yes = (0, 1) if key == "weight" else (False, True)
    row = {"messages": [USER, answer("no", **{key: no}), USER, answer("yes", **{key: yes}), USER, answer("too")]}
    [(whole, learned)] = texts(made, write(tmp_path / "d.jsonl", row))
    assert "no<|end|>" in whole
    assert learned.replace("<|end|>", "") == "yestoo"


def test_system_and_tools_beside_lists_of_messages_belong_to_them(tmp_path: Any, with_tools: Any) -> None:
    system = {"role": "system", "content": "be kind"}
    rows = [
        {"system": "be kind", "messages": [USER, answer()]},
        {"system": "be kind", "messages": [system, USER, answer()]},
        {"system": "be kind", "prompt": [USER], "completion": [answer()]},
        {"system": "be kind", "prompt": "q", "completion": "a"},
        {"system": "be kind", "question": "q", "answer": "a"},
    ]
    found = texts(with_tools, write(tmp_path / "d.jsonl", *rows))
    assert found == [("<|user|>be kind<|end|><|user|>q<|end|><|assistant|>a<|end|>", "a<|end|>")] * len(rows)
    path = write(tmp_path / "p.jsonl", {"prompt": [USER], "system": "be kind", "tools": [TOOL], "note": "n"})
    [record] = read_prompts(PromptDataConfig(path=path), with_tools).rows
    assert record.prompt == [{**system, "tools": [TOOL]}, USER]
    assert json.dumps(TOOL) in with_tools.decode(record.prompt_ids)
    with pytest.raises(BadRow, match="column `system` says another thing"):
        prompt_of({"prompt": [system, USER], "system": "be rude"})


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([USER, answer(weight=0.5)], "turn 2 of `messages`: `weight` must be 0 .* not 0.5"),
        ([{**USER, "weight": 1}, answer()], "asks to learn a turn of the user"),
        ([USER, answer("", tool_calls=[{"name": 3}])], "a tool call must be an object with `name`"),
        ([USER, answer("", tool_calls=[{"name": "f", "arguments": "{x"}])], "the arguments of 'f' are not JSON"),
        ([USER, answer("")], "turn 2 of messages` is empty"),
        ([USER, {"role": "assistant"}], "turn 2 of `messages` must be an object with `role` and `content`"),
        ([{"role": "user", "content": [{"type": "image_url"}]}, answer()], "one of its parts is 'image_url'"),
    ],
)
def test_turns_that_say_nothing_clear(turns: Any, words: str) -> None:
    with pytest.raises(BadRow, match=words):
        demonstration_of({"messages": turns})


def test_texts_in_parts_are_one_text() -> None:
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert demonstration_of({"messages": [USER, answer(parts)]}).completion[1] == answer("a b")


@pytest.mark.parametrize("more", [{"tool_calls": [CALL]}, {"reasoning_content": "hm"}, {"weight": 0}])
def test_answers_that_are_compared_or_scored_are_texts_alone(more: dict[str, Any]) -> None:
    with pytest.raises(BadRow, match=f"`chosen` has `{next(iter(more))}`.*write it into `content`"):
        ranking_of({"prompt": [USER], "chosen": [answer(**more)], "rejected": [answer("b")]})
    with pytest.raises(BadRow, match="`completion` has"):
        answered_of({"prompt": [USER], "completion": [answer(**more)]})


def test_a_prompt_may_hold_calls_but_not_end_with_one(with_tools: Any) -> None:
    turns = [USER, answer(None, tool_calls=[CALL]), {"role": "tool", "content": "20"}]
    assert prompt_of({"prompt": turns})[0][1]["tool_calls"][0]["function"] == CALL["function"]
    with pytest.raises(BadRow, match="ends with the call of a tool"):
        prompt_of({"prompt": turns[:2]})


def test_people_and_rules_see_calls_and_thoughts_too() -> None:
    turns = [USER, answer(None, tool_calls=[CALL], reasoning="hm"), {"role": "tool", "content": "20"}, answer()]
    texts = texts_of({"messages": turns})
    assert texts.prompt == 'q\nhm\n{"name": "weather", "arguments": {"city": "北京"}}\n20'
    assert texts_of({"messages": turns[:2]}).best == 'hm\n{"name": "weather", "arguments": {"city": "北京"}}'


def test_whole_conversations_beside_their_prompt_are_a_pair(tmp_path: Any, tokenizer: Any) -> None:
    """As in ultrafeedback_binarized."""
    row = {"prompt": "q ", "prompt_id": "1", "chosen": [USER, answer("good")], "rejected": [USER, answer("bad")]}
    row |= {"messages": row["chosen"], "score_chosen": 8.0, "score_rejected": 5.0}
    expected = {"prompt": [USER], "responses": ["good", "bad"]}
    for given in (row, row | {"prompt": [USER]}, row | {"prompt": ""}):
        found = ranking_of(given)
        assert {"prompt": found.prompt, "responses": found.responses} == expected
    loaded = read_rankings(RankingDataConfig(path=write(tmp_path / "d.jsonl", row)), tokenizer)
    assert "  columns not read: prompt_id, messages, score_chosen, score_rejected" in loaded.report.lines()
    with pytest.raises(BadRow, match="`prompt` is not what the conversations in `chosen` and `rejected` begin with"):
        ranking_of(row | {"prompt": "another"})


QUESTIONS = {
    "question, chosen, rejected": {"question": "q", "chosen": "good", "rejected": "bad"},
    "system, question": {"system": "", "question": "q", "chosen": "good", "rejected": "bad"},
    "input": {"input": "q", "chosen": "good", "rejected": "bad"},
    "as messages": {"question": "q", "chosen": [answer("good")], "rejected": [answer("bad")]},
    "as conversations": {"question": "q", "chosen": [USER, answer("good")], "rejected": [USER, answer("bad")]},
}


@pytest.mark.parametrize("case", QUESTIONS)
def test_questions_with_a_better_and_a_worse_answer(case: str) -> None:
    [row] = own_rows(QUESTIONS[case], "auto")
    found = ranking_of(row)
    assert (found.prompt, found.responses) == ([USER], ["good", "bad"])


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "q", "response": "a"}, "q"),
        ({"prompt": [USER], "response": [answer()]}, [USER]),
        ({"question": "q", "answer": "a"}, [USER]),
        ({"query": "q", "response": "a"}, [USER]),
        ({"input": "q", "output": "a"}, [USER]),
    ],
)
def test_questions_with_an_answer(row: Any, prompt: Any) -> None:
    [laid] = own_rows(row, "auto")
    assert demonstration_of(laid).prompt == answered_of(laid).prompt == prompt_of(laid)[0] == prompt
    assert answered_of(laid).completion == "a"
    assert not demonstration_of(laid).columns
    if "answer" in row:
        assert prompt_of(laid)[1]["answer"] == "a", "a reward function looks for it under its own name"


def test_an_implicit_prompt_that_is_empty_is_refused() -> None:
    with pytest.raises(BadRow, match="no column is the prompt; its columns are: post, chosen, rejected"):
        ranking_of({"post": "p", "chosen": "good", "rejected": "bad"})
    assert ranking_of({"prompt": "", "chosen": "good", "rejected": "bad"}).prompt == ""


def test_tasks_with_several_instances() -> None:
    row = {"instruction": "add", "instances": [{"input": "1 1", "output": "2"}, {"input": "", "output": "3"}], "id": 7}
    found = [demonstration_of(one) for one in own_rows(row, "auto")]
    assert [one.prompt[0]["content"] for one in found] == ["add\n1 1", "add"]
    assert [one.columns for one in found] == [{"id": 7}] * 2


def test_cells_of_csv_hold_messages(tmp_path: Any) -> None:
    import csv

    rows = [
        {"prompt": json.dumps([USER]), "completion": json.dumps([answer()]), "tools": json.dumps([TOOL])},
        {"prompt": "[1] text", "completion": "[a]", "tools": ""},
    ]
    with (tmp_path / "d.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    read = [demonstration_of(row) for _, row in read_rows(DataConfig(path=str(tmp_path / "d.csv")))]
    assert read[0].prompt == [{**USER, "tools": [TOOL]}]
    assert read[0].completion == [answer()]
    assert (read[1].prompt, read[1].completion) == ("[1] text", "[a]")


@pytest.mark.parametrize(
    "text", [str([USER]), json.dumps([USER]), "[ {'content': 'q', 'role': 'user'}\n {'content': 'a'"]
)
def test_messages_spelt_out_as_text_are_refused(text: str) -> None:
    with pytest.raises(BadRow, match="`prompt` is a text that spells out messages; give them as a list"):
        prompt_of({"prompt": text})


def test_conversations_are_no_prompts_but_hold_some() -> None:
    with pytest.raises(BadRow, match=r"has no column `prompt` but `messages`, .*`content: prompts`"):
        prompt_of({"messages": [USER, answer()]})


def test_nulls_that_a_table_puts_into_messages_say_nothing(tmp_path: Any, with_tools: Any) -> None:
    import pyarrow
    import pyarrow.parquet

    calls = [{"function": {"name": "weather", "arguments": {"city": "北京", "unit": None}}}]
    messages = [{**USER, "tool_calls": None, "weight": None}, {**answer(None, weight=1), "tool_calls": calls}]
    tools = [{"function": {"name": "weather", "strict": None}}]
    table = pyarrow.Table.from_pylist([{"messages": messages, "tools": tools}])
    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    [(whole, learned)] = texts(with_tools, str(tmp_path / "d.parquet"))
    assert learned == '[weather {"city": "北京"}]<|end|>'
    assert "null" not in whole


def test_columns_and_keys_that_are_not_read_are_named_once(tmp_path: Any, tokenizer: Any) -> None:
    turns = [{**USER, "id": 1, "lang": None}, answer(name="bot")]
    row = {"messages": turns, "source": "s", "empty": None, "blank": ""}
    path = write(tmp_path / "d.jsonl", row, row | {"score": 1})
    lines = list(read_supervised(TextDataConfig(path=path), tokenizer).report.lines())
    assert lines == [
        f"{path}: 2 of 2 rows used",
        "  columns not read: source, score",
        "  keys of messages not read: id, name",
    ]
    path = write(tmp_path / "p.jsonl", {"prompt": "q", "completion": "a", "solution": "4"})
    for report in (
        read_prompts(PromptDataConfig(path=path), tokenizer).report,
        read_answered(DataConfig(path=path)).report,
    ):
        handed = [line for line in report.lines() if line.startswith("  columns")]
        assert handed[0].startswith("  columns that only reward functions and the output get: ")
        assert handed[0].endswith("solution")

"""Calls of tools in turns of the policy, in the forms of the known families and by a response template."""

from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.data.tool_calls import CallParser, hermes_calls, llama_calls, mistral_calls, qwen_coder_calls
from rlhf_ray.data.turn_borders import TurnBorders
from rlhf_ray.models.tiny import CHAT_TEMPLATE, build_tokenizer

ADD = ("add", {"a": 1, "b": [2, "x"]})

FORMS: dict[str, tuple[Any, str, tuple[str, list[tuple[str, Any]]]]] = {
    "hermes": (
        hermes_calls,
        'Well.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}}\n</tool_call>',
        ("Well.\n", [ADD]),
    ),
    "hermes, two": (
        hermes_calls,
        '<tool_call>{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}}</tool_call>\n'
        '<tool_call>{"name": "now"}</tool_call>',
        ("\n", [ADD, ("now", {})]),
    ),
    "hermes, no JSON": (hermes_calls, "<tool_call>add(1, 2)</tool_call>", ("", [("", "add(1, 2)")])),
    "hermes, unclosed": (hermes_calls, '<tool_call>{"name": "add"', ("", [("", '{"name": "add"')])),
    "hermes, arguments as text": (
        hermes_calls,
        '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>',
        ("", [("add", {"a": 1})]),
    ),
    "hermes, no name": (hermes_calls, '<tool_call>{"arguments": {}}</tool_call>', ("", [("", '{"arguments": {}}')])),
    "hermes, none": (hermes_calls, "It is 4.", ("It is 4.", [])),
    "coder": (
        qwen_coder_calls,
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n"
        '<parameter=b>\n[2, "x"]\n</parameter>\n</function>\n</tool_call>',
        ("", [ADD]),
    ),
    "coder, text": (
        qwen_coder_calls,
        "<tool_call><function=say><parameter=words>\nhello\nyou\n</parameter></function></tool_call>",
        ("", [("say", {"words": "hello\nyou"})]),
    ),
    "coder, no function": (qwen_coder_calls, "<tool_call>add</tool_call>", ("", [("", "add")])),
    "mistral, list": (
        mistral_calls,
        '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "b": [2, "x"]}, "id": "123456789"}, {"name": "now"}]',
        ("", [ADD, ("now", {})]),
    ),
    "mistral, names": (
        mistral_calls,
        'So:[TOOL_CALLS]add[ARGS]{"a": 1, "b": [2, "x"]}[TOOL_CALLS]now[CALL_ID]abc[ARGS]{}',
        ("So:", [ADD, ("now", {})]),
    ),
    "mistral, bare": (mistral_calls, '[TOOL_CALLS]add{"a": 1, "b": [2, "x"]}', ("", [ADD])),
    "mistral, broken": (mistral_calls, '[TOOL_CALLS] [{"name": "add"', ("", [("", ' [{"name": "add"')])),
    "llama": (llama_calls, '{"name": "add", "parameters": {"a": 1, "b": [2, "x"]}}', ("", [ADD])),
    "llama, tagged, two": (
        llama_calls,
        '<|python_tag|>{"name": "add", "parameters": {"a": 1, "b": [2, "x"]}}; {"name": "now", "parameters": {}}',
        ("", [ADD, ("now", {})]),
    ),
    "llama, broken": (llama_calls, '{"name": "add", ', ("", [("", '{"name": "add",')])),
    "llama, none": (llama_calls, "The set {1, 2}.", ("The set {1, 2}.", [])),
}


@pytest.mark.parametrize("case", FORMS)
def test_each_form_is_read(case: str) -> None:
    read, text, found = FORMS[case]
    assert read(text) == found


TOOLS = "{% for t in tools or [] %}{{ '<|system|>' + t['function']['name'] + '<|end|>' }}{% endfor %}"
HEAD = "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] or '') }}"
TAIL = "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
CALLS = {
    "hermes": "{{ '<tool_call>' + ({'name': f['name'], 'arguments': f['arguments']} | tojson) + '</tool_call>' }}",
    "coder": "{{ '<tool_call><function=' + f['name'] + '>' }}{% for k, v in f['arguments'].items() %}"
    "{{ '<parameter=' + k + '>' + v | string + '</parameter>' }}{% endfor %}{{ '</function></tool_call>' }}",
    "mistral": "{{ '[TOOL_CALLS]' + f['name'] + '[ARGS]' + (f['arguments'] | tojson) }}",
    "llama": "{{ {'name': f['name'], 'parameters': f['arguments']} | tojson }}",
}
READS = {"hermes": hermes_calls, "coder": qwen_coder_calls, "mistral": mistral_calls, "llama": llama_calls}
SCHEMA: dict[str, Any] = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def encoder_of(template: str) -> Encoder:
    tokenizer = build_tokenizer(["add one and two"], 330)
    tokenizer.chat_template = template
    return Encoder(tokenizer)


def template_of(form: str) -> str:
    each = "{% for c in m['tool_calls'] or [] %}{% set f = c['function'] %}" + CALLS[form] + "{% endfor %}"
    return TOOLS + HEAD + each + TAIL


@pytest.mark.parametrize("form", CALLS)
def test_the_form_is_told_from_the_template_and_what_it_writes_is_read(form: str) -> None:
    encoder = encoder_of(template_of(form))
    parser = CallParser(encoder, [SCHEMA])
    assert parser._read is READS[form]
    call = {"type": "function", "id": "c00000000", "function": {"name": "add", "arguments": {"a": 1, "b": "two"}}}
    asked: Any = {"role": "user", "content": "question", "tools": [SCHEMA]}
    turn: Any = {"role": "assistant", "content": "", "tool_calls": [call]}
    opening = encoder.template.opening([asked])
    whole = encoder.template.render([asked, turn])
    text = whole.removeprefix(opening).removesuffix("<|end|>")
    message = parser.message(text, np.zeros(0, np.int32), np.zeros(0, np.int32))
    assert message == turn
    assert parser.message("It is 3.", np.zeros(0, np.int32), np.zeros(0, np.int32))["content"] == "It is 3."


@pytest.mark.parametrize("form", CALLS)
def test_all_results_stand_between_two_turns(form: str) -> None:
    encoder = encoder_of(template_of(form))
    results: Any = [
        {"role": "tool", "name": "add", "tool_call_id": f"c{n:08}", "content": f"result {n}"} for n in range(3)
    ]
    between = encoder.tokenizer.decode(TurnBorders(encoder).between(results, ended=True))
    assert between == "".join(f"<|tool|>result {n}<|end|>" for n in range(3)) + "<|assistant|>"


def test_a_template_without_calls_is_refused() -> None:
    with pytest.raises(BadInput, match="the chat template takes no calls of tools"):
        CallParser(encoder_of(CHAT_TEMPLATE), [SCHEMA])


def test_a_form_that_nobody_knows_is_refused() -> None:
    call = "{% set f = c['function'] %}{{ 'CALL ' + f['name'] }}{{ f['arguments'] }}"
    each = "{% for c in m['tool_calls'] or [] %}" + call + "{% endfor %}"
    with pytest.raises(BadInput, match="give the tokenizer a `response_template`"):
        CallParser(encoder_of(TOOLS + HEAD + each + TAIL), [SCHEMA])

"""Calls of tools in what the policy wrote, by its tokenizer's response template or the form of its chat template."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.messages import tool_name
from rlhf_ray.data.records import ASSISTANT, Message
from rlhf_ray.data.template_turns import PROBE_CALL, PROBE_TOOL
from rlhf_ray.data.tokenization import Encoder, Ids

Found = tuple[str, list[tuple[str, Any]]]
"""The text beside the calls, and name and arguments of each; arguments that are no JSON stay the text that they are."""

XML_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
XML_FUNCTION = re.compile(r"\s*<function=([^>\s]*)>(.*?)(?:</function>|\Z)", re.DOTALL)
XML_PARAMETER = re.compile(r"<parameter=([^>\s]*)>\n?(.*?)\n?(?:</parameter>|\Z)", re.DOTALL)
MISTRAL, PYTHON_TAG = "[TOOL_CALLS]", "<|python_tag|>"
MISTRAL_CALL = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\w*\s*)?(?:\[ARGS\]\s*)?")


def hermes_calls(text: str) -> Found:
    """Read `<tool_call>{"name": ..., "arguments": ...}</tool_call>`, the form of Hermes and Qwen."""
    return XML_CALL.sub("", text), [_object(found[1], "arguments") for found in XML_CALL.finditer(text)]


def qwen_coder_calls(text: str) -> Found:
    """Read `<tool_call><function=NAME><parameter=NAME>VALUE</parameter></function></tool_call>`, of Qwen's coders.

    Values are JSON where they can be read so, else texts.
    """
    calls: list[tuple[str, Any]] = []
    for block in XML_CALL.finditer(text):
        function = XML_FUNCTION.match(block[1])
        if function is None:
            calls.append(("", block[1]))
            continue
        calls.append((function[1], {name: _value(value) for name, value in XML_PARAMETER.findall(function[2])}))
    return XML_CALL.sub("", text), calls


def mistral_calls(text: str) -> Found:
    """Read `[TOOL_CALLS]` with a list of objects behind it, or with name and arguments of each call."""
    content, _, behind = text.partition(MISTRAL)
    calls: list[tuple[str, Any]] = []
    for piece in behind.split(MISTRAL) if behind else []:
        if piece.lstrip().startswith("["):
            calls += _listed(piece)
            continue
        name = MISTRAL_CALL.match(piece)
        calls.append((name[1], _parsed(piece[name.end() :])) if name else ("", piece))
    return content, calls


def llama_calls(text: str) -> Found:
    """Read objects with `name` and `parameters` that are the whole of a turn, as Llama 3 writes them."""
    bare = text.strip().removeprefix(PYTHON_TAG).strip()
    if not bare.startswith("{"):
        return text, []
    calls, decoder = [], json.JSONDecoder()
    while bare:
        try:
            value, end = decoder.raw_decode(bare)
        except ValueError:
            calls.append(("", bare))
            break
        calls.append(_call_of(value, "parameters"))
        bare = bare[end:].lstrip("; \n\t\r")
    return "", calls


FORMS: dict[str, Callable[[str], Found]] = {
    "<function=probe>": qwen_coder_calls,
    "<tool_call>": hermes_calls,
    MISTRAL: mistral_calls,
    '"parameters"': llama_calls,
}
"""How calls are read, by what a template writes where a turn calls the tool `probe`; the first that is there counts."""


@dataclass
class CallParser:
    """Reads turns of the policy, with the calls that stand in them."""

    encoder: Encoder
    tools: Sequence[dict[str, Any]]
    """JSON schemas of what may be called."""
    _read: Callable[[str], Found] | None = field(init=False, default=None)
    """None: the tokenizer has a response template."""

    def __post_init__(self) -> None:
        """Find out how the tokenizer's chat template writes calls.

        Raises:
            BadInput: nothing says how to read them.
        """
        if getattr(self.encoder.tokenizer, "response_template", None) is not None:
            return
        text = self._probe()
        self._read = next((read for mark, read in FORMS.items() if mark in text), None)
        if self._read is None:
            raise BadInput(
                f"{self.encoder.tokenizer.name_or_path}: how the policy calls tools cannot be told from its chat "
                "template; give the tokenizer a `response_template`, or set model.chat_template to one of the forms "
                "of Qwen, Llama, Hermes or Mistral"
            )

    def message(self, text: str, written: Ids, read: Ids) -> Message:
        """Return a turn with its calls; one whose arguments are no JSON object has them as a text.

        Args:
            text: what the policy wrote, without the end of its turn.
            written: its tokens, to that end.
            read: the tokens before them, which may have begun a thought.
        """
        content, calls = self._by_template(text, written, read) if self._read is None else self._read(text)
        turn: dict[str, Any] = {"role": ASSISTANT, "content": content.strip() if calls else content}
        if calls:
            turn["tool_calls"] = [
                {"type": "function", "id": f"c{place:08}", "function": {"name": name, "arguments": arguments}}
                for place, (name, arguments) in enumerate(calls)
            ]
        return cast(Message, turn)

    def _by_template(self, text: str, written: Ids, read: Ids) -> Found:
        tokenizer = self.encoder.tokenizer
        try:
            parsed = tokenizer.parse_response(written.tolist(), prefix=read.tolist(), tools=list(self.tools))
        except (ValueError, TypeError, KeyError, AttributeError):
            return "", [("", text)]  # a call that cannot be read is one all the same
        calls = [call.get("function", call) for call in parsed.get("tool_calls") or []]
        return str(parsed.get("content") or ""), [(tool_name(call), call.get("arguments", {})) for call in calls]

    def _probe(self) -> str:
        asked: dict[str, Any] = {"role": "user", "content": "question", "tools": [PROBE_TOOL]}
        called: dict[str, Any] = {"role": ASSISTANT, "content": "", "tool_calls": [PROBE_CALL]}
        try:
            before, after = (
                self.encoder.template.render([cast(Message, one) for one in turns])
                for turns in ([asked], [asked, called])
            )
        except BadRow as error:
            raise BadInput(
                f"{self.encoder.tokenizer.name_or_path}: the chat template takes no calls of tools: {error}"
            ) from error
        return after.removeprefix(before)


def _object(text: str, key: str) -> tuple[str, Any]:
    value = _parsed(text)
    return _call_of(value, key) if isinstance(value, dict) else ("", text)


def _call_of(value: Any, key: str) -> tuple[str, Any]:
    """Return name and arguments of an object; what is none stays a text."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return "", json.dumps(value)
    other = "parameters" if key == "arguments" else "arguments"
    arguments = value.get(key, value.get(other, {}))
    return value["name"], _parsed(arguments) if isinstance(arguments, str) else arguments


def _listed(text: str) -> Iterator[tuple[str, Any]]:
    try:
        values, _ = json.JSONDecoder().raw_decode(text.lstrip())
    except ValueError:
        yield "", text
        return
    for value in values:
        yield _call_of(value, "arguments")


def _parsed(text: str) -> Any:
    """Return what a text holds as JSON, or the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _value(text: str) -> Any:
    value = _parsed(text.strip())
    return text if isinstance(value, str) else value

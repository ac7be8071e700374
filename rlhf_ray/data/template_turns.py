"""Turns as a chat template reads them, and whether it passes over something that they say."""

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.messages import REASONING, SAID, tool_name
from rlhf_ray.data.records import Message

Render = Callable[..., str]
"""Renders messages; `tools` as a keyword."""
ARGUMENT, VALUE = "argument", "probed"
PROBE_CALL = {"type": "function", "id": "call00000", "function": {"name": "probe", "arguments": {ARGUMENT: VALUE}}}
PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "a probe",
        "parameters": {"type": "object", "properties": {ARGUMENT: {"type": "string", "description": "any"}}},
    },
}
CALLING: tuple[dict[str, Any], ...] = ({}, {"builtin_tools": ["other"]})
"""Options under which a template may end calls in another way: Llama-3 asks tools of its own by `<|eom_id|>`."""


class ReadTurn(dict[str, Any]):
    """A message that remembers which of its keys were asked for."""

    def __init__(self, message: Mapping[str, Any], asked: set[str]) -> None:
        super().__init__(message)
        self._asked = asked

    def __getitem__(self, key: str) -> Any:
        self._asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value, and remember its key."""
        self._asked.add(key)
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._asked.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self._asked.update(super().keys())
        return super().__iter__()

    def keys(self) -> Any:
        """Return all keys: whoever looks through them reads them."""
        self._asked.update(super().keys())
        return super().keys()

    def items(self) -> Any:
        """Return all keys and values."""
        self._asked.update(super().keys())
        return super().items()

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReadTurn":
        return ReadTurn({key: copy.deepcopy(value, memo) for key, value in super().items()}, self._asked)


@dataclass(frozen=True, slots=True)
class CallForm:
    """Form in which a template wants a turn that calls a tool."""

    content: str | None = None
    """What stands for no text."""
    as_json: bool = False
    """Whether arguments are a text."""


FORMS = [CallForm(content, as_json) for as_json in (False, True) for content in (None, "")]
"""Forms in the order in which they are tried: first that of inference servers."""


class TemplateTurns:
    """Hands conversations to a template in the form that it takes, and checks that it reads all that they say."""

    def __init__(self, render: Render) -> None:
        """Render turns by the template; `render` raises BadRow where that refuses."""
        self._render = render
        self._form: CallForm | None = None
        self.read: set[str] = set()
        """Keys of messages that the template has asked for so far."""

    def rendered(self, messages: Sequence[Message], **options: Any) -> str:
        """Return the text of a conversation.

        Raises:
            BadRow: the template refuses it, or passes over something that it says.
        """
        turns, tools, asked = self.given(messages)
        text = self._render(turns, tools=tools, **options)
        self.check(messages, asked, text)
        return text

    def given(self, messages: Sequence[Message]) -> tuple[list[ReadTurn], list[Any] | None, list[set[str]]]:
        """Return the turns for a template, the tools beside them, and where each turn notes what was asked for."""
        tools = messages[0].get("tools") if messages else None
        asked: list[set[str]] = [set() for _ in messages]
        return [ReadTurn(self._turn(m), a) for m, a in zip(messages, asked, strict=True)], tools, asked

    def check(self, messages: Sequence[Message], asked: Sequence[set[str]], text: str) -> None:
        """Check that nothing was passed over.

        Raises:
            BadRow: names the turn, what it says, and what to do.
        """
        for number, (message, keys) in enumerate(zip(messages, asked, strict=True), start=1):
            if keys.intersection(REASONING):
                keys.update(REASONING)
            if "tool_calls" in keys:
                keys.add("function_call")
            self.read |= keys
            for key in SAID.intersection(message) - keys - {"tools"}:
                raise _passed_over(f"`{key}` of turn {number}")
            calls = message.get("tool_calls", [])
            for call in calls:
                if tool_name(call) not in text:
                    raise _passed_over(f"the call of {tool_name(call)!r} in turn {number}")
            if calls and message["content"].strip() not in text:
                raise _passed_over(f"the text beside the call of a tool in turn {number}")
        for tool in messages[0].get("tools", []) if messages else []:
            self.read.add("tools")
            if tool_name(tool) not in text:
                raise _passed_over(f"the tool {tool_name(tool)!r} in `tools`")

    def call_ends(self, special: Collection[str]) -> list[str]:
        """Return the special tokens that end a turn behind its calls of tools, and stand between none of them."""
        found = []
        for options in CALLING:
            # Some templates take one call in a turn alone.
            text = self._called(2, options) or self._called(1, options)
            first, last = text.partition(VALUE)[2], text.rpartition(VALUE)[2].rstrip()
            ends = [name for name in special if name.strip() and last.endswith(name) and first.count(name) == 1]
            found += sorted(ends, key=len)[-1:]
        return found

    def _called(self, calls: int, options: Mapping[str, Any]) -> str:
        """Render a conversation that ends with calls of a tool; empty where the template takes none."""
        turn = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**PROBE_CALL, "id": f"c{n:08}"} for n in range(calls)],
        }
        asked = {"role": "user", "content": "question", "tools": [PROBE_TOOL]}
        try:
            return self.rendered([cast(Message, asked), cast(Message, turn)], **options)
        except BadRow:
            return ""

    def _turn(self, message: Message) -> dict[str, Any]:
        turn: dict[str, Any] = {key: value for key, value in message.items() if key not in ("tools", "weight")}
        thought = next((turn[name] for name in REASONING if name in turn), None)
        if thought is not None:
            turn = {**dict.fromkeys(REASONING, thought), **turn}
        if "tool_calls" in turn:
            self._form = self._form or self._found_form()
            return _in_form(turn, self._form)
        return turn

    def _found_form(self) -> CallForm:
        """Find the first form in which a call comes out whole; the first of all, later refused, where none does."""
        for form in FORMS:
            turn = _in_form({"role": "assistant", "content": "", "tool_calls": [PROBE_CALL]}, form)
            try:
                text = self._render([{"role": "user", "content": "question"}, turn])
            except BadRow:
                continue
            if "probe" in text and ARGUMENT in text and '\\"' not in text and "None" not in text:
                return form
        return FORMS[0]


def _in_form(turn: dict[str, Any], form: CallForm) -> dict[str, Any]:
    calls = turn["tool_calls"]
    if form.as_json:
        functions = [call["function"] for call in calls]
        spelt = [{**one, "arguments": json.dumps(one["arguments"], ensure_ascii=False)} for one in functions]
        calls = [{**call, "function": function} for call, function in zip(calls, spelt, strict=True)]
    return {**turn, "content": turn["content"] or form.content, "tool_calls": calls}


def _passed_over(what: str) -> BadRow:
    return BadRow(
        f"the chat template passes over {what}; set model.chat_template to one that reads it, or take it away"
    )

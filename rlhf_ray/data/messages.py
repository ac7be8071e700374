"""Messages as rows hold them: who speaks, what, and whatever else a turn says."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.records import Message, Prompt

MESSAGES = "messages"
"""Column of whole conversations."""
REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names of what the assistant thinks before it answers; chat templates know one of them."""
SAID = frozenset({*REASONING, "tool_calls", "tools", "tool_plan"})
"""Keys of a turn that are part of what is written or read, so that nobody may pass over them."""
LEARNED = ("weight", "train", "loss")
"""Names of a turn's word on whether it is learned; it is kept as `weight`."""
_SPELT_OUT = re.compile(r"\s*\[\s*\{\s*['\"](role|from|content|value)['\"]\s*:")
"""How a list of messages begins that is written as text."""


def messages_of(value: Any, name: str) -> list[Message]:
    """Return checked messages with all their keys that hold something.

    Contents that are lists of texts are joined, a `function_call` is one of the `tool_calls`, and the call of a tool
    has the form {"type": "function", "function": {"name", "arguments"}} with arguments that are no text.

    Raises:
        BadRow: no list of messages, or one of them says nothing, or nothing that can be read.
    """
    value = _unpacked(value)
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRow(f"`{name}` must be text or a list of messages")
    return [_message(message, turn, name) for turn, message in enumerate(value, start=1)]


def answer_of(value: Any, name: str) -> str:
    """Return a response as text; messages must be one turn of the assistant that says nothing beside its content.

    Raises:
        BadRow: other messages, or nothing in them.
    """
    if isinstance(value, str):
        return text_of(value, name)
    messages = messages_of(value, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow(f"`{name}` must be text or one turn of the assistant, it has {len(messages)} turns")
    more = [key for key in messages[0] if key in SAID]
    if more or messages[0].get("weight") == 0:
        raise BadRow(
            f"`{name}` has `{(more or ['weight'])[0]}`, and an answer to be compared or scored is its text alone; "
            "write it into `content` as the model writes it, or take it away"
        )
    return messages[0]["content"]


def asked_of(row: Row, name: str, may_be_empty: bool = False) -> Prompt:
    """Return the prompt or the conversation in a column, with what columns `system` and `tools` say of it.

    Beside those, a text is the user's turn. Tools stand as `tools` in the first message, for wherever it goes.

    Raises:
        BadRow: it is malformed, or says one thing and the columns another.
    """
    value, system, tools = row[name], row.get("system"), row.get("tools")
    if isinstance(value, str) and name != MESSAGES and value.strip() and (system or _tools(tools)):
        value = [{"role": "user", "content": text_of(value, name)}]
    if isinstance(value, str) and name != MESSAGES:
        return text_of(value, name, may_be_empty)
    return _with_tools(_with_system(messages_of(value, name), system), tools)


def text_of(value: Any, name: str, may_be_empty: bool = False) -> str:
    """Return a text.

    Raises:
        BadRow: it is none, is empty, no valid Unicode, or messages that somebody has written as text.
    """
    if not isinstance(value, str):
        raise BadRow(f"`{name}` must be text, not {'null' if value is None else type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise BadRow(f"`{name}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"`{name}` is not valid Unicode at character {error.start}; convert the file to UTF-8") from error
    if _SPELT_OUT.match(value):
        raise BadRow(
            f"`{name}` is a text that spells out messages; give them as a list, and in a CSV cell as JSON (json.dumps)"
        )
    return value


def words_of(message: Message) -> str:
    """Return what a turn says as one text, for people and rules: its thoughts, its content, the tools that it calls."""
    said: Mapping[str, Any] = message
    thought = next((str(said[name]) for name in REASONING if name in said), "")
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", [])]
    return "\n".join(text for text in (thought, message["content"], *calls) if text)


def extra_keys(value: Any) -> list[str]:
    """Return the keys beside role and content in what may be messages."""
    if not isinstance(value, list):
        return []
    turns = [turn for turn in value if isinstance(turn, Mapping)]
    return [str(key) for turn in turns for key, one in turn.items() if key not in ("role", "content") and _says(one)]


def _message(message: Any, turn: int, name: str) -> Message:
    where = f"turn {turn} of `{name}`"
    if not isinstance(message, Mapping) or "role" not in message:
        raise BadRow(f"{where} must be an object with `role` and `content`")
    given = {str(key): value for key, value in message.items() if _says(value)}
    calls = _calls(given, where)
    thinks = any(key in given for key in REASONING)
    if "content" not in message and not calls and not thinks:
        raise BadRow(f"{where} must be an object with `role` and `content`")
    may_be_empty = message["role"] == "system" or bool(calls) or thinks
    content = message.get("content")
    found: dict[str, Any] = {
        "role": str(message["role"]),
        "content": ""
        if content is None and may_be_empty
        else _content(content, f"turn {turn} of {name}", may_be_empty),
    }
    found |= {key: _plain(value) for key, value in given.items() if key not in ("role", "content", *LEARNED)}
    if calls:
        found.pop("function_call", None)
        found["tool_calls"] = calls
    weight = _weight(given, found["role"], where)
    if weight is not None:
        found["weight"] = weight
    if "tools" in found:
        found["tools"] = _tools(found["tools"])
    return cast(Message, found)


def _says(value: Any) -> bool:
    """Tell whether a key holds something: tables have all keys in all messages, and null where one has none."""
    return value is not None and value != "" and value != [] and value != {}


def _plain(value: Any) -> Any:
    """Return what JSON has a form for: a prompt is written into files and sent to services."""
    return value if isinstance(value, str | int | float | list | dict) else str(value)


def _content(value: Any, name: str, may_be_empty: bool) -> str:
    """Return the text of a turn, which may come in parts."""
    if isinstance(value, list) and value:
        kinds = [part.get("type") if isinstance(part, Mapping) else None for part in value]
        other = next((kind for kind in kinds if kind != "text"), "text")
        if other != "text":
            raise BadRow(f"`{name}` must be text; one of its parts is {other!r}, which no job here reads")
        value = "".join(text_of(part.get("text"), name, may_be_empty=True) for part in value)
    return text_of(value, name, may_be_empty)


def _calls(given: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    calls = _unpacked(given.get("tool_calls", []))
    if not calls and "function_call" in given:
        calls = [given["function_call"]]
    if not isinstance(calls, list):
        raise BadRow(f"{where}: `tool_calls` must be a list of calls")
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    call = _unpacked(call)
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadRow(f"{where}: a tool call must be an object with `name` and `arguments`, or with these in `function`")
    arguments = _unpacked(function.get("arguments") or {})
    if isinstance(arguments, str):
        raise BadRow(f"{where}: the arguments of {function['name']!r} are not JSON: {arguments[:40]!r}")
    outer = {key: value for key, value in call.items() if key not in ("name", "arguments", "function")}
    return {"type": "function", **outer, "function": {"name": function["name"], "arguments": arguments}}


def _weight(given: Mapping[str, Any], role: str, where: str) -> int | None:
    key = next((key for key in LEARNED if key in given), None)
    if key is None:
        return None
    weight = given[key]
    if not isinstance(weight, bool | int | float) or weight not in (0, 1):
        raise BadRow(f"{where}: `{key}` must be 0 (not learned) or 1, not {weight!r}")
    if weight and role != "assistant":
        raise BadRow(f"{where}: `{key}` asks to learn a turn of the {role}; only the assistant's are learned")
    return int(weight)


def _with_system(messages: list[Message], system: Any) -> list[Message]:
    if not system:
        return messages
    first = messages[0]
    if first["role"] != "system":
        return [{"role": "system", "content": text_of(system, "system")}, *messages]
    if first["content"] != system:
        raise BadRow("column `system` says another thing than the system's turn; take one of them away")
    return messages


def _with_tools(messages: list[Message], value: Any) -> list[Message]:
    tools = _tools(value)
    if not tools:
        return messages
    if messages[0].get("tools", tools) != tools:
        raise BadRow("column `tools` says another thing than `tools` of the first turn; take one of them away")
    return [cast(Message, {**messages[0], "tools": tools}), *messages[1:]]


def _tools(value: Any) -> list[dict[str, Any]]:
    tools = _unpacked(value) or []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and tool_name(tool) for tool in tools):
        raise BadRow("`tools` must be a list of JSON schemas of functions, each with a `name`")
    return tools


def tool_name(tool: Mapping[str, Any]) -> str:
    """Return the name of a tool or of a call; empty if it has none."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return name if isinstance(name, str) else ""


def _unpacked(value: Any) -> Any:
    """Return what a text holds as JSON, where lists and objects belong and texts do not."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value) if value.strip() else None
    except (ValueError, RecursionError):
        return value

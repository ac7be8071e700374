"""Turns of conversations, whoever named the speakers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.records import Message

SPEAKERS = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
"""The roles of chat templates, by the names that data sets give to speakers."""


def user(text: Any, name: str) -> Message:
    """Make a turn of the user from a column."""
    return {"role": "user", "content": text_of(text, name)}


def assistant(text: Any, name: str) -> Message:
    """Make a turn of the assistant from a column."""
    return {"role": "assistant", "content": text_of(text, name)}


def text_of(value: Any, name: str) -> str:
    """Return the text of a column.

    Raises:
        BadRow: it is none.
    """
    if not isinstance(value, str):
        raise BadRow(f"`{name}` must be text, not {'null' if value is None else type(value).__name__}")
    return value


def turns_of(value: Any, name: str) -> list[Message]:
    """Read turns of `from` and `value`, `from` and `content`, or `role` and `content`; one alone is taken too.

    Raises:
        BadRow: no turns, or a turn whose speaker or text is missing or unknown.
    """
    turns = [value] if isinstance(value, Mapping) else value
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise BadRow(f"`{name}` must be a list of turns")
    return [_turn(turn, f"turn {place} of {name}") for place, turn in enumerate(turns, start=1)]


def _turn(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow(f"{name} must be an object with `from` and `value`, or `role` and `content`")
    speaker = turn.get("from", turn.get("role"))
    if speaker is None:
        raise BadRow(f"{name} does not say who speaks (`from` or `role`)")
    role = SPEAKERS.get(str(speaker).lower())
    if role is None:
        raise BadRow(f"{name} is by {speaker!r}; speakers are {', '.join(SPEAKERS)}")
    given = [key for key in ("value", "content", "text") if turn.get(key) is not None]
    others = {key: value for key, value in turn.items() if key not in ("from", "role", "value", "content", "text")}
    calls = _calls(turn, str(speaker).lower(), given)
    if calls:
        return cast(Message, {"role": role, "content": "", "tool_calls": calls, **others})
    if not given and not any(value for value in others.values()):
        raise BadRow(f"{name} has no text (`value` or `content`)")
    content = text_of(turn[given[0]], name) if given else ""
    return cast(Message, {"role": role, "content": content, **others})


def _calls(turn: Mapping[str, Any], speaker: str, given: Sequence[str]) -> list[Any]:
    """Return what a turn of `function_call` calls, as JSON of one or several calls; none where it is another text."""
    if speaker != "function_call" or not given or not isinstance(turn[given[0]], str):
        return []
    try:
        value = json.loads(turn[given[0]])
    except ValueError:
        return []
    calls = value if isinstance(value, list) else [value]
    return calls if all(isinstance(call, dict) and "name" in call for call in calls) else []


def opening(system: Any, history: Any) -> list[Message]:
    """Return what comes before a question: the system's text, then earlier questions with their answers.

    Raises:
        BadRow: `history` is no list of pairs of texts.
    """
    messages: list[Message] = [{"role": "system", "content": text_of(system, "system")}] if system else []
    if not isinstance(history or [], Sequence) or isinstance(history, str):
        raise BadRow("`history` must be a list of [question, answer]")
    for place, pair in enumerate(history or [], start=1):
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise BadRow(f"entry {place} of `history` must be [question, answer]")
        messages.append(user(pair[0], f"question {place} of history"))
        messages.append(assistant(pair[1], f"answer {place} of history"))
    return messages

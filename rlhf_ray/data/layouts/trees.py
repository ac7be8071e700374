"""Open-Assistant's message trees (Köpf et al. 2023): a prompt, replies to it, replies to those."""

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.layouts.turns import SPEAKERS, text_of
from rlhf_ray.data.records import Message

DEEPEST = 100
"""Longest conversation; deeper trees are broken ones."""


def is_tree(row: Row) -> bool:
    """Tell whether a row is a tree of messages."""
    prompt = row.get("prompt")
    return isinstance(prompt, Mapping) and "text" in prompt and "replies" in prompt


def read_rankings(row: Row) -> list[Row]:
    """Read a ranking for each message of the user that has at least two ranked answers."""
    return [
        {
            "prompt": path,
            "responses": [text_of(reply["text"], "text") for reply in ranked],
            "ranks": [reply["rank"] for reply in ranked],
            **_of_tree(row),
        }
        for path, replies in _asked(_root(row), [])
        if len(ranked := [reply for reply in replies if isinstance(reply.get("rank"), int)]) > 1
    ]


def read_conversations(row: Row) -> list[Row]:
    """Read whole conversations along the best answers."""
    found = []
    for path, replies in _asked(_root(row), []):
        best = _best(replies)
        if not any(_alive(further) for further in _alive(best)):
            found.append({"messages": [*path, _message(best)], **_of_tree(row)})
    return found


def _root(row: Row) -> Mapping[str, Any]:
    root = row.get("prompt", row)
    if not isinstance(root, Mapping) or SPEAKERS.get(str(root.get("role"))) != "user":
        raise BadRow("is no message tree: `prompt` must be an object with `text`, role `prompter` and `replies`")
    return root


def _of_tree(row: Row) -> Row:
    found = {"message_tree_id": row.get("message_tree_id"), "lang": _root(row).get("lang")}
    return {name: value for name, value in found.items() if value is not None}


def _asked(node: Mapping[str, Any], path: list[Message]) -> Iterator[tuple[list[Message], list[Mapping[str, Any]]]]:
    """Yield each message of the user with the turns before it, and the answers to it.

    The conversation goes on below the best answer only.
    """
    here = [*path, _message(node)]
    if len(here) > DEEPEST:
        raise BadRow(f"the tree is deeper than {DEEPEST} messages")
    replies = _alive(node)
    if not replies:
        return
    yield here, replies
    best = _best(replies)
    for further in _alive(best):
        yield from _asked(further, [*here, _message(best)])


def _alive(node: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    replies = node.get("replies") or []
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise BadRow("`replies` must be a list of messages")
    return [reply for reply in replies if not reply.get("deleted")]


def _best(replies: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the answer of the smallest rank; the first of those without one if none has any."""
    ranked = [reply for reply in replies if isinstance(reply.get("rank"), int)]
    return min(ranked, key=lambda reply: reply["rank"]) if ranked else replies[0]


def _message(node: Mapping[str, Any]) -> Message:
    role = SPEAKERS.get(str(node.get("role")))
    if role not in ("user", "assistant"):
        raise BadRow(f"a message of the tree has role {node.get('role')!r}; roles are prompter and assistant")
    return {"role": role, "content": text_of(node.get("text"), "text")}

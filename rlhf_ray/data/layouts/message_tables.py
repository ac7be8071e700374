"""Open-Assistant's message tables (Köpf et al. 2023): a row for each message, which names the one that it answers.

They become the trees of `trees.py`. A table is held in memory whole, for the messages of a tree may stand anywhere.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.bad_rows import BadRow, Place
from rlhf_ray.data.file_formats import RawRow, Row

COLUMNS = ("message_id", "role", "text")
"""Columns of every message; `parent_id` is absent, null or empty where a tree begins."""
ROLES = ("prompter", "assistant")
TRUTH = {"true": True, "false": False, "1": True, "0": False, "": False}
"""As the cells of a CSV file hold it."""


@dataclass(eq=False, slots=True)
class _Message:
    """A row of the table."""

    place: Place
    name: str
    parent: str | None
    tree: str | None
    node: Row
    replies: list["_Message"] = field(default_factory=list)


def is_message(row: Row) -> bool:
    """Tell whether a row is one message of a table: the first of a tree, or one that names its parent."""
    known = all(name in row for name in COLUMNS) and row["role"] in ROLES
    return known and ("parent_id" in row or row["role"] == "prompter")


def as_trees(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    """Return rows as they are; where the first usable one is a message, all as trees, each at its first message."""
    rows = iter(rows)
    for place, row in rows:
        if isinstance(row, BadRow):
            yield place, row
        elif is_message(row):
            yield from _trees(itertools.chain([(place, row)], rows))
            return
        else:
            yield place, row
            yield from rows
            return


def _trees(rows: Iterable[RawRow]) -> Iterator[RawRow]:
    messages: dict[str, _Message] = {}
    yield from _read(rows, messages)
    begins = [message for message in messages.values() if message.parent is None]
    orphans = [message for message in messages.values() if message.parent and message.parent not in messages]
    for message in messages.values():
        if message.parent in messages:
            messages[message.parent].replies.append(message)
    lost = set(messages)
    for message in begins:
        lost -= _below(message)
        yield message.place, {"message_tree_id": message.tree or message.name, "prompt": message.node}
    for message in orphans:
        below = _below(message)
        lost -= below
        more = f"; lost with it: {len(below) - 1} below it" if len(below) > 1 else ""
        yield message.place, BadRow(f"its parent_id {message.parent!r} is no message_id here{more}")
    for name in messages:
        if name in lost:
            yield messages[name].place, BadRow("each of the messages above it answers another, and none is the first")


def _read(rows: Iterable[RawRow], messages: dict[str, _Message]) -> Iterator[RawRow]:
    """Collect messages by their names; what is none of them is handed on as a bad row."""
    for place, row in rows:
        try:
            if isinstance(row, BadRow):
                raise row
            message = _message(place, row)
            if message.name in messages:
                raise BadRow(f"message_id {message.name!r} stands at {messages[message.name].place} too")
        except BadRow as error:
            yield place, error
        else:
            messages[message.name] = message


def _below(message: _Message) -> set[str]:
    """Return the names of a message and of all below it; their nodes get their replies."""
    found = set()
    waiting = [message]
    while waiting:
        here = waiting.pop()
        found.add(here.name)
        here.node["replies"] = [reply.node for reply in here.replies]
        waiting += here.replies
    return found


def _message(place: Place, row: Row) -> _Message:
    missing = [name for name in COLUMNS if _empty(row.get(name))]
    if missing:
        raise BadRow(f"is no message as the rows before it: it has no {', '.join(missing)}")
    node = {"text": row["text"], "role": row["role"], "rank": _rank(row.get("rank"))}
    node["deleted"] = _truth(row.get("deleted"), "deleted")
    if not _empty(row.get("lang")):
        node["lang"] = row["lang"]
    parent, tree = (None if _empty(row.get(name)) else str(row[name]) for name in ("parent_id", "message_tree_id"))
    return _Message(place, str(row["message_id"]), parent, tree, node)


def _empty(value: Any) -> bool:
    """Tell whether a cell holds nothing: null, an empty text, or the NaN that tables of numbers have in its place."""
    return value is None or value == "" or value != value


def _rank(value: Any) -> int | None:
    if _empty(value):
        return None
    try:
        rank = int(float(value)) if not isinstance(value, bool) else None
    except (TypeError, ValueError, OverflowError):
        rank = None
    if rank is None or rank != float(value):
        raise BadRow(f"`rank` must be a whole number, not {value!r}")
    return rank


def _truth(value: Any, name: str) -> bool:
    if _empty(value):
        return False
    found = value if isinstance(value, bool) else TRUTH.get(str(value).strip().lower())
    if found is None:
        raise BadRow(f"`{name}` must be true or false, not {value!r}")
    return found

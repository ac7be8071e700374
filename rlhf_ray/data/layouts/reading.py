"""From the rows of other projects' data sets to the columns of this one, which are TRL's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from rlhf_ray.config.data import RowLayout
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import RANKED_TEXTS, Row
from rlhf_ray.data.layouts.questions import (
    ASKED,
    is_question,
    read_choice,
    read_context,
    read_conversations,
    read_instances,
    read_instruction,
    read_messages,
    read_question,
    read_question_pair,
    read_two_responses,
)
from rlhf_ray.data.layouts.transcripts import (
    is_open_transcript,
    is_transcript,
    read_conversation,
    read_open,
    read_pair,
)
from rlhf_ray.data.layouts.trees import is_tree
from rlhf_ray.data.layouts.trees import read_conversations as read_tree_conversations
from rlhf_ray.data.layouts.trees import read_rankings as read_tree_rankings


@dataclass(frozen=True)
class _Shape:
    """One way in which rows of a layout are written."""

    column: str
    """One that each such row has."""
    wanted: str
    """What such a row has, for the message when no row of the layout looks like it."""
    fits: Callable[[Row], bool]
    read: Callable[[Row], Row | list[Row]]


def _has(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(name in row for name in names)


def _names_speakers_in_from(row: Row) -> bool:
    messages = row.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    return isinstance(first, Mapping) and "from" in first


SHAREGPT = _Shape("conversations", "conversations", _has("conversations"), read_conversations)
ALPACA = _Shape(
    "instruction",
    "instruction, output",
    lambda row: "instruction" in row and "instances" not in row,
    read_instruction,
)
TREES = "prompt with text and replies, or is a message table with message_id, parent_id, role and text"
SHAPES: dict[str, list[_Shape]] = {
    "open_assistant": [_Shape("prompt", TREES, is_tree, read_tree_rankings)],
    "open_assistant_conversations": [_Shape("prompt", TREES, is_tree, read_tree_conversations)],
    "safe_rlhf": [
        _Shape(
            "response_0",
            "prompt, response_0, response_1, better_response_id",
            _has("prompt", "response_0", "response_1", "better_response_id"),
            partial(read_two_responses, judgement="better_response_id"),
        )
    ],
    "safe_rlhf_safer": [
        _Shape(
            "response_0",
            "prompt, response_0, response_1, safer_response_id",
            _has("prompt", "response_0", "response_1", "safer_response_id"),
            partial(read_two_responses, judgement="safer_response_id"),
        )
    ],
    "compare": [_Shape("winner", "prompt, a, b, winner", _has("prompt", "a", "b", "winner"), read_choice)],
    "medicalgpt": [
        _Shape(
            "question",
            "question, response_chosen, response_rejected",
            _has("question", "response_chosen", "response_rejected"),
            read_question_pair,
        ),
        SHAREGPT,
        ALPACA,
    ],
    "sharegpt": [SHAREGPT],
    "colossalchat": [
        _Shape("context", "context, chosen, rejected", _has("context", "chosen", "rejected"), read_context),
        _Shape("messages", "messages with `from`", _names_speakers_in_from, read_messages),
    ],
    "alpaca": [_Shape("instances", "instruction, instances", _has("instruction", "instances"), read_instances), ALPACA],
    "hh": [
        _Shape(
            "chosen",
            "chosen and rejected that begin with Human:",
            lambda row: is_transcript(row.get("chosen")) and is_transcript(row.get("rejected")),
            read_pair,
        ),
        _Shape("text", "text that begins with Human:", lambda row: is_transcript(row.get("text")), read_conversation),
    ],
    "deepspeed_chat": [
        _Shape(
            "prompt", "prompt from Human: to Assistant:", lambda row: is_open_transcript(row.get("prompt")), read_open
        )
    ],
    "questions": [
        _Shape(name, f"{name} with answer, response or output, or with chosen, rejected", is_question, read_question)
        for name in ASKED
    ],
}
"""Shapes of each layout. In `auto` the first that fits decides; what fits none is TRL's own."""
ALL_SHAPES = [shape for shapes in SHAPES.values() for shape in shapes]


def own_rows(row: Row, layout: RowLayout) -> list[Row]:
    """Return the rows, in columns of `rlhf_ray.data.columns`, that one row holds; a tree may hold none.

    Raises:
        BadRow: the row is broken, or is not of the layout that was named.
    """
    if layout == "trl" or RANKED_TEXTS in row:
        return [row]
    shapes = ALL_SHAPES if layout == "auto" else SHAPES[layout]
    shape = next((shape for shape in shapes if shape.column in row and shape.fits(row)), None)
    if shape is not None:
        read = shape.read(row)
        return read if isinstance(read, list) else [read]
    if layout == "auto":
        return [row]
    wanted = ", or ".join(shape.wanted for shape in shapes)
    columns = ", ".join(str(name) for name in row) or "none"
    raise BadRow(f"is no row of layout {layout}, which has {wanted}; its columns are: {columns}")

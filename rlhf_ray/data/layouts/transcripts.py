"""Conversations written as one text: `\\n\\nHuman: ... \\n\\nAssistant: ...` (Bai et al. 2022, HH-RLHF)."""

import re
from typing import Any

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.layouts.turns import text_of
from rlhf_ray.data.records import Message

SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):[ \t]?")
"""Who speaks, at the beginning of a line after a blank one."""
ROLES = {"Human": "user", "Assistant": "assistant"}


def is_transcript(value: Any) -> bool:
    """Tell whether a value is text that begins with a turn of the human and has one of the assistant."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and "\n\nAssistant:" in f"\n\n{value}"


def is_open_transcript(value: Any) -> bool:
    """Tell whether a transcript stops where the assistant is to answer."""
    return is_transcript(value) and str(value).rstrip().endswith("Assistant:")


def split_transcript(text: str, name: str) -> list[Message]:
    """Split a transcript into turns; an empty one of the assistant at the end, for the answer, is left out.

    Raises:
        BadRow: the text does not begin with a speaker, or a turn in the middle is empty.
    """
    marks = list(SPEAKER.finditer(text))
    if not marks or marks[0].start() != 0:
        raise BadRow(f"`{name}` is no transcript: it must begin with `Human:`")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    messages: list[Message] = [
        {"role": ROLES[mark[1]], "content": text[mark.end() : end].strip()}
        for mark, end in zip(marks, ends, strict=True)
    ]
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"]:
        messages.pop()
    for place, message in enumerate(messages, start=1):
        if not message["content"]:
            raise BadRow(f"turn {place} of `{name}` is empty")
    return messages


def read_pair(row: Row) -> Row:
    """Read `chosen` and `rejected` as transcripts that share all turns but the last (HH-RLHF).

    Raises:
        BadRow: they share no turns, or do not end with one answer each.
    """
    chosen = split_transcript(text_of(row["chosen"], "chosen"), "chosen")
    rejected = split_transcript(text_of(row["rejected"], "rejected"), "rejected")
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        if messages[-1]["role"] != "assistant":
            raise BadRow(f"`{name}` ends without an answer of the assistant")
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise BadRow("`chosen` and `rejected` must share all turns but the last")
    return {**row, "prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def read_open(row: Row) -> Row:
    """Read `prompt` as a transcript up to `Assistant:`, with answers in other columns (DeepSpeed-Chat).

    Those are `chosen` and `rejected`, and `response` or `completion`.
    """
    messages = split_transcript(text_of(row["prompt"], "prompt"), "prompt")
    read: Row = {**row, "prompt": messages}
    if messages[-1]["role"] != "user":
        raise BadRow("`prompt` must end with `Assistant:`, where the answer is to come")
    if "response" in read:
        read["completion"] = read.pop("response")
    for name in ("completion", "chosen", "rejected"):
        if read.get(name) is not None:
            read[name] = [{"role": "assistant", "content": text_of(read[name], name).strip()}]
    return read


def read_conversation(row: Row) -> Row:
    """Read `text` as a whole transcript."""
    return {
        **{name: value for name, value in row.items() if name != "text"},
        "messages": split_transcript(text_of(row["text"], "text"), "text"),
    }

"""Rows that hold a question and its answers in columns of their own names."""

from collections.abc import Collection, Mapping, Sequence

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.layouts.turns import assistant, opening, text_of, turns_of, user
from rlhf_ray.data.records import Message

ASKED = ("question", "query", "input")
"""Names of the column with what is asked, where there is no `prompt`."""
SAID = ("answer", "response", "output")
"""Names of the column with the answer beside those."""
EMPTY = "has an empty question"


def _others(row: Row, used: Collection[str]) -> Row:
    return {name: value for name, value in row.items() if name not in used}


def read_conversations(row: Row, column: str = "conversations") -> Row:
    """Read turns in `conversations`, alone or with the last answers in `chosen` and `rejected` (ShareGPT).

    A column `system` begins the conversation where no turn of the system does.
    """
    messages = turns_of(row[column], column)
    system = row.get("system")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": text_of(system, "system")})
    others = _others(row, {column, "system", "chosen", "rejected"})
    if row.get("chosen") is None or row.get("rejected") is None:
        return {"messages": messages, **others}
    return {"prompt": messages, **_pair(row), **others}


def read_context(row: Row) -> Row:
    """Read `context`, `chosen` and `rejected` as turns (ColossalChat)."""
    others = _others(row, {"context", "chosen", "rejected"})
    return {"prompt": turns_of(row["context"], "context"), **_pair(row), **others}


def read_messages(row: Row) -> Row:
    """Read `messages` whose speakers stand in `from` (ColossalChat); one that ends with the human is a prompt."""
    messages = turns_of(row["messages"], "messages")
    others = _others(row, {"messages"})
    return {("messages" if messages[-1]["role"] == "assistant" else "prompt"): messages, **others}


def _pair(row: Row) -> dict[str, list[Message]]:
    return {
        name: [assistant(row[name], name)] if isinstance(row[name], str) else turns_of(row[name], name)
        for name in ("chosen", "rejected")
    }


def read_question_pair(row: Row) -> Row:
    """Read `question`, `response_chosen`, `response_rejected`, later with `system` and `history` (MedicalGPT)."""
    prompt = [*opening(row.get("system"), row.get("history")), user(row["question"], "question")]
    others = _others(row, {"system", "history", "question", "response_chosen", "response_rejected"})
    return {
        "prompt": prompt,
        "chosen": [assistant(row["response_chosen"], "response_chosen")],
        "rejected": [assistant(row["response_rejected"], "response_rejected")],
        **others,
    }


def read_instruction(row: Row) -> Row:
    """Read `instruction`, `input`, and `output`, or `chosen` and `rejected` (Alpaca).
    A list of outputs is best first.
    """
    asked = text_of(row["instruction"], "instruction")
    if row.get("input"):
        asked = f"{asked}\n{text_of(row['input'], 'input')}"
    prompt = [*opening(row.get("system"), row.get("history")), user(asked, "instruction")]
    others = _others(row, {"system", "history", "instruction", "input", "output", "chosen", "rejected"})
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return {"prompt": prompt, **_pair(row), **others}
    output = row.get("output")
    if not output:
        return {"prompt": prompt, **others}
    if isinstance(output, Sequence) and not isinstance(output, str):
        return {"prompt": prompt, "responses": list(output), **others}
    return {"prompt": prompt, "completion": [assistant(output, "output")], **others}


def read_two_responses(row: Row, judgement: str) -> Row:
    """Read `prompt`, `response_0`, `response_1`, and which of them a judgement prefers (safe-rlhf).

    Args:
        row: as in the file.
        judgement: `better_response_id` (helpful) or `safer_response_id` (harmless).

    Raises:
        BadRow: the number is neither 0 nor 1.
    """
    best = row[judgement]
    if isinstance(best, bool) or best not in (0, 1):
        raise BadRow(f"`{judgement}` must be 0 or 1, not {best!r}")
    return {
        "prompt": [user(row["prompt"], "prompt")],
        "responses": [text_of(row[name], name) for name in ("response_0", "response_1")],
        "ranks": [best, 1 - best],
        **_others(row, {"prompt", "response_0", "response_1"}),
    }


def read_choice(row: Row) -> list[Row]:
    """Read `prompt`, `a`, `b`, and the `winner` of the two (`rlhf compare`); a tie is no pair to learn from.

    Raises:
        BadRow: the winner is neither a, b nor tie.
    """
    winner = row["winner"]
    if winner not in ("a", "b", "tie"):
        raise BadRow(f"`winner` must be a, b or tie, not {winner!r}")
    if winner == "tie":
        return []
    better, worse = (row["a"], row["b"]) if winner == "a" else (row["b"], row["a"])
    return [{"prompt": row["prompt"], "chosen": better, "rejected": worse, **_others(row, {"prompt", "a", "b"})}]


def read_instances(row: Row) -> list[Row]:
    """Read `instruction` with `instances` of `input` and `output`, a row for each (self-instruct)."""
    if not isinstance(row["instances"], list) or not all(isinstance(one, Mapping) for one in row["instances"]):
        raise BadRow("`instances` must be a list of objects with `input` and `output`")
    return [read_instruction({**_others(row, {"instances"}), **one}) for one in row["instances"]]


def is_question(row: Row) -> bool:
    """Tell whether a row asks in one column of `ASKED`, answers in others, and has no prompt by its own name."""
    if "prompt" in row or "messages" in row or not any(name in row for name in ASKED):
        return False
    return ("chosen" in row and "rejected" in row) or any(name in row for name in SAID)


def read_question(row: Row) -> Row:
    """Read `question` (or `query`, `input`) with `answer` (or `response`, `output`), or with a pair's columns.

    An answer is kept under its own name too: reward functions look for it there.
    """
    asked = [name for name in ASKED if row.get(name)]
    if len(asked) != 1:
        raise BadRow(
            f"`{asked[0]}` and `{asked[1]}` may both be the prompt; name one of them `prompt`" if asked else EMPTY
        )
    prompt = [*opening(row.get("system"), row.get("history")), user(row[asked[0]], asked[0])]
    if row.get("chosen") is not None and row.get("rejected") is not None:
        return {"prompt": prompt, **_pair(row), **_others(row, {*ASKED, "system", "history", "chosen", "rejected"})}
    others = _others(row, {*ASKED, "system", "history"})
    said = [name for name in SAID if row.get(name) is not None]
    if len(said) != 1 or "completion" in row:
        return {"prompt": prompt, **others}
    return {"prompt": prompt, "completion": [assistant(row[said[0]], said[0])], **others}

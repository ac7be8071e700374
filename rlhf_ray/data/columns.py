"""From a row's columns to what it means: TRL's column names, text or messages.

Sources: the dataset types of TRL (https://huggingface.co/docs/trl/dataset_formats).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import PLAIN_TEXT, RANKED_TEXTS, Row
from rlhf_ray.data.records import Message, Prompt, Ranking

MAX_RESPONSES = 9
"""Longest ranking; K = 4 to 9 in Ouyang et al. 2022, and 2 is a pair."""
MESSAGES = "messages"
LABELS = {"true": True, "false": False, "1": True, "0": False}
"""Labels as the cells of a CSV file hold them."""
RANKING_COLUMNS = frozenset({"prompt", "chosen", "rejected", "responses", "ranks", RANKED_TEXTS})


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Something to learn to write: a completion of a prompt, a text (no prompt), or a conversation."""

    prompt: Prompt | None
    """None: the whole text, or the whole conversation, is in `completion`."""
    completion: Prompt


@dataclass(frozen=True, slots=True)
class Answered:
    """A prompt with a completion, to be scored."""

    prompt: Prompt
    completion: str
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt with a completion, and whether that is what people want."""

    prompt: Prompt
    completion: str
    desirable: bool


def prompt_of(row: Row) -> tuple[Prompt, dict[str, Any]]:
    """Read column `prompt` (or a line of a text file), and the other columns.

    Raises:
        BadRow: no prompt, or an empty or malformed one.
    """
    name = "prompt"
    if name not in row and set(row) == {PLAIN_TEXT}:
        name = PLAIN_TEXT
    if name not in row:
        raise BadRow(_missing("column `prompt`", row))
    prompt = _prompt(row[name], name)
    return prompt, {key: value for key, value in row.items() if key != name}


def demonstration_of(row: Row) -> Demonstration:
    """Read `prompt` and `completion`, or `messages`, or `text`.

    Raises:
        BadRow: none of them, or an empty or malformed one.
    """
    if "prompt" in row and "completion" in row:
        prompt = _prompt(row["prompt"], "prompt", may_be_empty=True)
        completion = _prompt(row["completion"], "completion")
        if isinstance(prompt, str) != isinstance(completion, str):
            raise BadRow("`prompt` and `completion` must both be text or both be messages")
        if not isinstance(completion, str) and completion[-1]["role"] != "assistant":
            raise BadRow(f"`completion` must end with the assistant's turn, not the {completion[-1]['role']}'s")
        return Demonstration(prompt or None, completion)
    if MESSAGES in row:
        messages = _messages(row[MESSAGES], MESSAGES)
        if not any(message["role"] == "assistant" for message in messages):
            raise BadRow("`messages` holds no turn of the assistant, so there is nothing to learn")
        return Demonstration(None, messages)
    if PLAIN_TEXT in row:
        return Demonstration(None, _text(row[PLAIN_TEXT], PLAIN_TEXT))
    raise BadRow(_missing("columns `prompt` and `completion`, nor `messages`, nor `text`", row))


def answered_of(row: Row) -> Answered:
    """Read `prompt` and `completion`, or `text`, and the other columns.

    Raises:
        BadRow: neither, or an empty or malformed one.
    """
    if "prompt" in row and "completion" in row:
        prompt = _prompt(row["prompt"], "prompt", may_be_empty=True)
        columns = {key: value for key, value in row.items() if key not in ("prompt", "completion")}
        return Answered(prompt, _response(row["completion"], "completion"), columns)
    if PLAIN_TEXT in row:
        columns = {key: value for key, value in row.items() if key != PLAIN_TEXT}
        return Answered("", _text(row[PLAIN_TEXT], PLAIN_TEXT), columns)
    raise BadRow(_missing("columns `prompt` and `completion`, nor `text`", row))


def pair_of(row: Row) -> Ranking:
    """Read a ranking of two, as `ranking_of`; the better answer comes first.

    Raises:
        BadRow: other columns, more answers, or texts that say nothing.
    """
    if ("chosen" not in row or "rejected" not in row) and "responses" not in row:
        raise BadRow(_missing("columns `chosen` and `rejected`", row))
    ranking = ranking_of(row)
    if len(ranking.responses) > 2:
        raise BadRow(f"ranks {len(ranking.responses)} answers; give two of them as `chosen` and `rejected`")
    best, worst = sorted(range(2), key=lambda place: ranking.ranks[place])
    return replace(ranking, responses=[ranking.responses[best], ranking.responses[worst]], ranks=[0, 1])


def labelled_of(row: Row) -> Labelled:
    """Read `prompt`, `completion` and `label`.

    Raises:
        BadRow: one of them is missing, empty or malformed.
    """
    if "prompt" not in row or "completion" not in row or "label" not in row:
        raise BadRow(_missing("columns `prompt`, `completion` and `label`", row))
    label = row["label"]
    if isinstance(label, str) and label.strip().lower() in LABELS:
        label = LABELS[label.strip().lower()]
    if not isinstance(label, int) or label not in (0, 1):
        raise BadRow(f"`label` must be true or false, not {label!r}")
    prompt = _prompt(row["prompt"], "prompt", may_be_empty=True)
    return Labelled(prompt, _response(row["completion"], "completion"), bool(label))


def as_given(prompt: Prompt, completion: str) -> Prompt:
    """A completion in the form of its prompt: text, or the assistant's message."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def ranking_of(row: Row) -> Ranking:
    """Read `prompt`, `chosen`, `rejected` (the prompt may be in both answers), or `prompt`, `responses`, `ranks`.

    Without `ranks`, responses come best first. A line of a rank list holds whole texts; its prompt is empty.

    Raises:
        BadRow: none of them, or texts or ranks that say nothing or contradict themselves.
    """
    columns = {key: value for key, value in row.items() if key not in RANKING_COLUMNS}
    if RANKED_TEXTS in row:
        if not isinstance(row[RANKED_TEXTS], list):
            raise BadRow(f"`{RANKED_TEXTS}` must be a list of texts, best first")
        texts = [_text(text, f"text {place} of the line") for place, text in enumerate(row[RANKED_TEXTS], start=1)]
        return _ranking("", texts, range(len(texts)), columns)
    if "chosen" in row and "rejected" in row:
        prompt, chosen, rejected = _pair(row)
        return _ranking(prompt, [chosen, rejected], [0, 1], columns)
    if "responses" in row:
        if "prompt" not in row:
            raise BadRow(_missing("column `prompt`", row))
        given = row["responses"]
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise BadRow("`responses` must be a list of texts")
        responses = [_response(response, f"response {place}") for place, response in enumerate(given, start=1)]
        ranks = row["ranks"] if row.get("ranks") is not None else range(len(responses))
        return _ranking(_prompt(row["prompt"], "prompt", may_be_empty=True), responses, ranks, columns)
    raise BadRow(_missing("columns `chosen` and `rejected`, nor `responses`", row))


def _ranking(prompt: Prompt, responses: list[str], ranks: Any, columns: dict[str, Any]) -> Ranking:
    if not 2 <= len(responses) <= MAX_RESPONSES:
        hint = "; texts are set apart by tabs" if len(responses) < 2 else ""
        raise BadRow(f"holds {len(responses)} texts, a ranking has 2 to {MAX_RESPONSES}{hint}")
    ranks = list(ranks) if isinstance(ranks, Sequence) and not isinstance(ranks, str) else ranks
    if not isinstance(ranks, list) or any(isinstance(rank, bool) or not isinstance(rank, int) for rank in ranks):
        raise BadRow("`ranks` must be a list of whole numbers, smallest best")
    if len(ranks) != len(responses):
        raise BadRow(f"{len(ranks)} ranks for {len(responses)} responses")
    if len(set(ranks)) == 1:
        raise BadRow("all ranks are equal, so the row prefers nothing")
    seen: dict[str, int] = {}
    for response, rank in zip(responses, ranks, strict=True):
        if seen.setdefault(response, rank) != rank:
            raise BadRow(f"the same text stands at ranks {seen[response]} and {rank}: {response[:40]!r}")
    order = sorted(set(ranks))
    return Ranking(prompt, responses, [order.index(rank) for rank in ranks], columns)


def _pair(row: Row) -> tuple[Prompt, str, str]:
    chosen, rejected = _prompt(row["chosen"], "chosen"), _prompt(row["rejected"], "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow("`chosen` and `rejected` must both be text or both be messages")
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"], "prompt", may_be_empty=True)
        return prompt, _response(chosen, "chosen"), _response(rejected, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        same = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
        shared = chosen[: sum(1 for _ in same)]
        # As TRL: a space before the first difference belongs to the answers.
        shared = shared.removesuffix(" ")
        if not chosen[len(shared) :] or not rejected[len(shared) :]:
            raise BadRow("one of `chosen` and `rejected` is the beginning of the other (or both are equal)")
        return shared, chosen[len(shared) :], rejected[len(shared) :]
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise BadRow("`chosen` and `rejected` must share all turns but the last, or the row needs column `prompt`")
    return chosen[:-1], _response(chosen[-1:], "chosen"), _response(rejected[-1:], "rejected")


def _prompt(value: Any, name: str, may_be_empty: bool = False) -> Prompt:
    if isinstance(value, str):
        return _text(value, name, may_be_empty)
    return _messages(value, name)


def _response(value: Any, name: str) -> str:
    """A response as text; messages must be one turn of the assistant."""
    if isinstance(value, str):
        return _text(value, name)
    messages = _messages(value, name)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRow(f"`{name}` must be text or one turn of the assistant, it has {len(messages)} turns")
    return messages[0]["content"]


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise BadRow(f"`{name}` must be text or a list of messages")
    messages: list[Message] = []
    for turn, message in enumerate(value, start=1):
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise BadRow(f"turn {turn} of `{name}` must be an object with `role` and `content`")
        may_be_empty = message["role"] == "system"
        content = _text(message["content"], f"turn {turn} of {name}", may_be_empty)
        messages.append({"role": str(message["role"]), "content": content})
    return messages


def _text(value: Any, name: str, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise BadRow(f"`{name}` must be text, not {'null' if value is None else type(value).__name__}")
    if not may_be_empty and not value.strip():
        raise BadRow(f"`{name}` is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"`{name}` is not valid Unicode at character {error.start}; convert the file to UTF-8") from error
    return value


def _missing(wanted: str, row: Row) -> str:
    if RANKED_TEXTS in row:
        return f"is a line of a rank list (.tsv), which has no {wanted}"
    names = ", ".join(str(name) for name in row) or "none"
    return f"has no {wanted}; its columns are: {names}. Rename them in the file"

"""From a row's columns to what it means: TRL's column names, text or messages.

Sources: the dataset types of TRL (https://huggingface.co/docs/trl/dataset_formats).
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.file_formats import PLAIN_TEXT, RANKED_TEXTS, Row
from rlhf_ray.data.messages import MESSAGES, answer_of, asked_of, messages_of, text_of
from rlhf_ray.data.records import Message, Prompt, Ranking

MAX_RESPONSES = 9
"""Longest ranking; K = 4 to 9 in Ouyang et al. 2022, and 2 is a pair."""
COMPLETIONS = ("completion", "response")
"""Names of the column that holds an answer; the first that is there is read."""
LABELS = {"true": True, "false": False, "1": True, "0": False}
"""Labels as the cells of a CSV file hold them."""
RANKING_COLUMNS = frozenset({"prompt", "system", "tools", "chosen", "rejected", "responses", "ranks", RANKED_TEXTS})
"""Columns of a ranking; what a row has beside them goes with it."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """Something to learn to write: a completion of a prompt, a text (no prompt), or a conversation."""

    prompt: Prompt | None
    """None: the whole text, or the whole conversation, is in `completion`."""
    completion: Prompt
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns, which nobody reads."""


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
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
    columns: Mapping[str, Any] = field(default_factory=dict)


def completion_column(row: Row) -> str | None:
    """Return the name of the column with the answer to a row's prompt; None where there is none."""
    return next((name for name in COMPLETIONS if name in row), None)


def own_names(row: Row) -> Row:
    """Return a row whose answer stands under the name that this project gives it."""
    if "prompt" not in row or completion_column(row) in (None, "completion"):
        return row
    return {("completion" if name == completion_column(row) else name): value for name, value in row.items()}


def prompt_of(row: Row) -> tuple[Prompt, dict[str, Any]]:
    """Read column `prompt` (or a line of a text file), with `system` and `tools`, and the other columns.

    Raises:
        BadRow: no prompt, or an empty or malformed one.
    """
    name = "prompt"
    if name not in row and set(row) == {PLAIN_TEXT}:
        name = PLAIN_TEXT
    if name not in row and MESSAGES in row:
        raise BadRow(
            "has no column `prompt` but `messages`, a conversation with its answers; a part of `rlhf data` with "
            "`content: prompts` holds what comes before the last of them"
        )
    if name not in row:
        raise BadRow(_missing("column `prompt`", row))
    prompt = asked_of(row, name)
    _check_ends(prompt)
    # Reward functions may ask for what stands in the prompt too.
    return prompt, {key: value for key, value in row.items() if key != name}


def demonstration_of(row: Row) -> Demonstration:
    """Read `prompt` and `completion` or `response`, or `messages`, or `text`; with `system` and `tools` where they are.

    Raises:
        BadRow: none of them, or an empty or malformed one.
    """
    name = completion_column(row)
    if "prompt" in row and name is not None:
        prompt = asked_of(row, "prompt", may_be_empty=True)
        _check_ends(prompt)
        completion = _said(row[name], name)
        if isinstance(completion, str) and isinstance(row["prompt"], str):
            completion = as_given(prompt, completion)
        if isinstance(prompt, str) != isinstance(completion, str):
            raise BadRow(f"`prompt` and `{name}` must both be text or both be messages")
        if not isinstance(completion, str) and completion[-1]["role"] != "assistant":
            raise BadRow(f"`{name}` must end with the assistant's turn, not the {completion[-1]['role']}'s")
        if not isinstance(completion, str) and any(turn.get("weight") == 0 for turn in completion):
            raise BadRow(f"`{name}` has a turn of weight 0; give the whole conversation as `messages`")
        said = completion if isinstance(completion, str) else completion[-1]["content"]
        # A question's answer stands under its own name as well.
        others = {key: value for key, value in _rest(row, "prompt", name, "system", "tools").items() if value != said}
        return Demonstration(prompt or None, completion, others)
    if MESSAGES in row:
        messages = asked_of(row, MESSAGES)
        if isinstance(messages, str) or not any(message["role"] == "assistant" for message in messages):
            raise BadRow("`messages` holds no turn of the assistant, so there is nothing to learn")
        return Demonstration(None, messages, _rest(row, MESSAGES, "system", "tools"))
    if PLAIN_TEXT in row:
        return Demonstration(None, text_of(row[PLAIN_TEXT], PLAIN_TEXT), _rest(row, PLAIN_TEXT))
    raise BadRow(_missing("columns `prompt` and `completion`, nor `messages`, nor `text`", row))


def answered_of(row: Row) -> AnsweredPrompt:
    """Read `prompt` and `completion` or `response`, or `text`, and the other columns.

    Raises:
        BadRow: neither, or an empty or malformed one.
    """
    name = completion_column(row)
    if "prompt" in row and name is not None:
        prompt = asked_of(row, "prompt", may_be_empty=True)
        return AnsweredPrompt(prompt, answer_of(row[name], name), _rest(row, "prompt", name))
    if PLAIN_TEXT in row:
        return AnsweredPrompt("", text_of(row[PLAIN_TEXT], PLAIN_TEXT), _rest(row, PLAIN_TEXT))
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
    """Read `prompt`, `completion` or `response`, and `label`.

    Raises:
        BadRow: one of them is missing, empty or malformed.
    """
    name = completion_column(row)
    if "prompt" not in row or name is None or "label" not in row:
        raise BadRow(_missing("columns `prompt`, `completion` and `label`", row))
    label = row["label"]
    if isinstance(label, str) and label.strip().lower() in LABELS:
        label = LABELS[label.strip().lower()]
    if not isinstance(label, int) or label not in (0, 1):
        raise BadRow(f"`label` must be true or false, not {label!r}")
    prompt = asked_of(row, "prompt", may_be_empty=True)
    columns = _rest(row, "prompt", name, "label", "system", "tools")
    return Labelled(prompt, answer_of(row[name], name), bool(label), columns)


def as_given(prompt: Prompt, completion: str) -> Prompt:
    """Return a completion in the form of its prompt: text, or the assistant's message."""
    return completion if isinstance(prompt, str) else [{"role": "assistant", "content": completion}]


def ranking_of(row: Row) -> Ranking:
    """Read `prompt`, `chosen`, `rejected` (the prompt may be in both answers), or `prompt`, `responses`, `ranks`.

    Without `ranks`, responses come best first. A line of a rank list holds whole texts; its prompt is empty.

    Raises:
        BadRow: none of them, or texts or ranks that say nothing or contradict themselves.
    """
    columns = _rest(row, *RANKING_COLUMNS)
    if RANKED_TEXTS in row:
        if not isinstance(row[RANKED_TEXTS], list):
            raise BadRow(f"`{RANKED_TEXTS}` must be a list of texts, best first")
        texts = [text_of(text, f"text {place} of the line") for place, text in enumerate(row[RANKED_TEXTS], start=1)]
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
        responses = [answer_of(response, f"response {place}") for place, response in enumerate(given, start=1)]
        ranks = row["ranks"] if row.get("ranks") is not None else range(len(responses))
        return _ranking(asked_of(row, "prompt", may_be_empty=True), responses, ranks, columns)
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
    chosen, rejected = _said(row["chosen"], "chosen"), _said(row["rejected"], "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise BadRow("`chosen` and `rejected` must both be text or both be messages")
    if isinstance(chosen, str) or isinstance(rejected, str):
        return _pair_of_texts(row, str(chosen), str(rejected))
    if len(chosen) == len(rejected) == 1 and row.get("prompt") is not None:
        return asked_of(row, "prompt", may_be_empty=True), answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise BadRow("`chosen` and `rejected` must share all turns but the last, or the row needs column `prompt`")
    before = chosen[:-1]
    if row.get("prompt") is not None:
        _check_same(asked_of({"prompt": row["prompt"]}, "prompt", may_be_empty=True), before)
    asked = asked_of({**row, "prompt": before}, "prompt")
    return asked, answer_of(chosen[-1:], "chosen"), answer_of(rejected[-1:], "rejected")


def _pair_of_texts(row: Row, chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    if row.get("prompt") is not None:
        return asked_of(row, "prompt", may_be_empty=True), chosen, rejected
    same = itertools.takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False))
    shared = chosen[: sum(1 for _ in same)]
    # As TRL: a space before the first difference belongs to the answers.
    shared = shared.removesuffix(" ")
    if not chosen[len(shared) :] or not rejected[len(shared) :]:
        raise BadRow("one of `chosen` and `rejected` is the beginning of the other (or both are equal)")
    if not shared.strip():
        raise BadRow(
            "`chosen` and `rejected` begin with nothing that they share, and no column is the prompt; its columns are: "
            f"{', '.join(map(str, row))}. Name the prompt's `prompt`, or give an empty `prompt` where there is none"
        )
    return shared, chosen[len(shared) :], rejected[len(shared) :]


def _check_same(prompt: Prompt, turns: Sequence[Message]) -> None:
    """Check that a prompt beside whole conversations is how they begin: as messages, or as the user's words."""
    if isinstance(prompt, str):
        words = [turn["content"].strip() for turn in turns if turn["role"] == "user"]
        if prompt.strip() in ("", *words, "\n".join(words)):
            return
    elif list(prompt) == list(turns):
        return
    raise BadRow(
        "`prompt` is not what the conversations in `chosen` and `rejected` begin with; take it away, or mend it"
    )


def _check_ends(prompt: Prompt) -> None:
    if not isinstance(prompt, str) and prompt and prompt[-1].get("tool_calls"):
        raise BadRow("`prompt` ends with the call of a tool; what the tool answered must follow")


def _said(value: Any, name: str) -> Prompt:
    return text_of(value, name) if isinstance(value, str) else messages_of(value, name)


def _rest(row: Row, *read: str) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in read}


def _missing(wanted: str, row: Row) -> str:
    if RANKED_TEXTS in row:
        return f"is a line of a rank list (.tsv), which has no {wanted}"
    names = ", ".join(str(name) for name in row) or "none"
    return f"has no {wanted}; its columns are: {names}. Rename them in the file"

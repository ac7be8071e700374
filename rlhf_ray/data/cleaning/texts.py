"""The texts of a row: what was asked, what was answered, and which answer is the best."""

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_ray.config.jobs.cleaning import TextChoice
from rlhf_ray.data.bad_rows import BadRow
from rlhf_ray.data.columns import completion_column, demonstration_of, prompt_of, ranking_of
from rlhf_ray.data.file_formats import PLAIN_TEXT, RANKED_TEXTS, Row
from rlhf_ray.data.messages import MESSAGES, words_of
from rlhf_ray.data.records import Prompt

BIG = 10**10
"""Whole numbers from here on may be a telephone or card number."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts of a row; turns of a conversation are joined by line breaks."""

    prompt: str
    """Empty where the row has none."""
    answers: tuple[str, ...]
    """None for a bare prompt; a plain text counts as an answer."""
    best: str
    """The answer of the best rank, the first of them."""

    def judged(self, which: TextChoice) -> list[str]:
        """Return the texts that a rule looks at; those of a row without answers are its prompt."""
        if which == "row":
            return [text for text in (self.prompt, *self.answers) if text]
        if which == "prompt" or not self.answers:
            return [self.prompt] if self.prompt else []
        return [self.best] if which == "answer" else list(self.answers)

    @property
    def whole(self) -> str:
        """All texts in one."""
        return "\n".join((self.prompt, *self.answers)) if self.prompt else "\n".join(self.answers)


def texts_of(row: Row) -> Texts:
    """Return the texts of a row in this project's columns.

    Raises:
        BadRow: it has none, or empty or malformed ones.
    """
    if _is_ranking(row):
        ranking = ranking_of(row)
        best = ranking.responses[list(ranking.ranks).index(min(ranking.ranks))]
        return Texts(joined(ranking.prompt), tuple(ranking.responses), best)
    if "completions" in row:
        steps = row["completions"]
        if not isinstance(steps, list) or not steps or not all(isinstance(step, str) for step in steps):
            raise BadRow("`completions` must be a list of texts")
        return Texts(joined(prompt_of(row)[0]), ("\n".join(steps),), "\n".join(steps))
    if _is_demonstration(row):
        prompt, completion = _asked_and_said(row)
        answer = joined(completion)
        return Texts(joined(prompt or ""), (answer,), answer)
    return Texts(joined(prompt_of(row)[0]), (), "")


def prompt_alone(row: Row) -> Prompt:
    """Return what a policy would be asked: the prompt of a row, or the turns before a conversation's last answer.

    It is the prompt that `texts_of` finds, whatever other columns stand beside it; but a plain text is a prompt whole,
    as it is to jobs that read prompts.

    Raises:
        BadRow: the row has no prompt, or is malformed.
    """
    prompt: Prompt | None
    if _is_ranking(row):
        prompt = ranking_of(row).prompt
    elif "completions" in row or not _is_demonstration(row):
        prompt = prompt_of(row)[0]
    else:
        prompt, said = _asked_and_said(row)
        if prompt is None and not ("prompt" in row and completion_column(row)):
            return said
        if prompt == []:
            raise BadRow("the conversation begins with its only answer, so it has no prompt")
    if not prompt:
        raise BadRow("has no prompt")
    return prompt


def _is_ranking(row: Row) -> bool:
    return RANKED_TEXTS in row or "responses" in row or ("chosen" in row and "rejected" in row)


def _is_demonstration(row: Row) -> bool:
    return MESSAGES in row or PLAIN_TEXT in row or completion_column(row) is not None


def _asked_and_said(row: Row) -> tuple[Prompt | None, Prompt]:
    """Return the prompt of a demonstration and its completion: a conversation's last answer, or a whole text.

    A text has None as its prompt, a conversation that begins with its last answer an empty one.
    """
    demonstration = demonstration_of(row)
    prompt, completion = demonstration.prompt, demonstration.completion
    if prompt is None and not isinstance(completion, str):
        last = max(place for place, message in enumerate(completion) if message["role"] == "assistant")
        return completion[:last], completion[last : last + 1]
    return prompt, completion


def joined(prompt: Prompt) -> str:
    """Return a prompt as one text."""
    return prompt if isinstance(prompt, str) else "\n".join(map(words_of, prompt))


def normal(text: str) -> str:
    """Return the form in which texts are compared: NFKC, no capitals, one space for any white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def map_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Change every text within a row, those of other columns included, and whole numbers that could be private."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: map_strings(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [map_strings(inner, change) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and value >= BIG:
        written = str(value)
        changed = change(written)
        return value if changed == written else changed
    return value

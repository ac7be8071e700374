"""Rewards of tasks whose answer is a number: 1 where the last number of a response is that of the column `answer`."""

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def exact_answer(prompts: Sequence[Any], completions: Sequence[Any], answer: Sequence[Any], **_: Any) -> list[float]:
    """Return 1 for a right answer, 0 for a wrong one or none."""
    return [float(last_number(text_of(c)) == number(wanted)) for c, wanted in zip(completions, answer, strict=True)]


def names_nine(prompts: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float]:
    """Return a cost for examples of safe RLHF: 1 for an answer that is 9, right or wrong."""
    return [float(last_number(text_of(completion)) == 9) for completion in completions]


def text_of(completion: Any) -> str:
    """Return the response itself: a completion is a list of messages where prompts are messages."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def last_number(text: str) -> Decimal | None:
    """Find the last number in a text; None where it has none."""
    found = NUMBER.findall(text)
    return number(found[-1]) if found else None


def number(text: Any) -> Decimal:
    """Return what a numeral says, without the commas of its thousands."""
    return Decimal(str(text).replace(",", ""))

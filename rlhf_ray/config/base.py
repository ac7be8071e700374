"""The base of every config section: typed, strict, finite, immutable, documented under each field."""

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

SMALLEST_FLOAT = 1e-30
"""Nearer to 0 float32 has hardly a number left, and most processors take what it has for 0."""


class Section(BaseModel):
    """One section of a config file. Unknown keys are errors; values do not change after loading.

    A value is of its field's own type: `true` is no number, `2.0` no integer, `"2"` neither. Numbers are finite. Texts
    are not empty, unless their field says `min_length=0`.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        str_min_length=1,
        use_attribute_docstrings=True,
        # The field `model` is the field's own word; pydantic reserves the prefix by default.
        protected_namespaces=(),
    )

    @field_validator("*", mode="after")
    @classmethod
    def _values_of_use(cls, value: Any) -> Any:
        for problem in _unusable(value):
            raise ValueError(problem)
        return value


def _unusable(value: Any) -> Iterator[str]:
    """What is wrong with a value, or with what is inside a list or a mapping handed through to a library."""
    if isinstance(value, str):
        if "\0" in value:
            yield "holds a NUL character"
        if any("\ud800" <= character <= "\udfff" for character in value):
            yield "holds half of a character (a lone surrogate), which no file can"
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield f"must be a finite number, not {value!r}"
        elif 0 < abs(value) < SMALLEST_FLOAT:
            yield f"is 0 to float32 arithmetic; write 0, or a number it has, not {value!r}"
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from (f"{name}: {problem}" for problem in _unusable(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _unusable(inner)

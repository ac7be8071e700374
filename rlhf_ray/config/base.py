"""The base of every config section: typed, strict, finite, immutable, documented under each field."""

import math
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from rlhf_ray.redaction.texts import holds_known_token, url_secrets
from rlhf_ray.redaction.values import is_word, remember_secret, variable_in

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
        for text in _texts(value):
            _keep_secret(text)
        return value


def _unusable(value: Any) -> Iterator[str]:
    """Say what is wrong with a value, or with what is inside a list or a mapping handed through to a library."""
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


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _keep_secret(text: str) -> None:
    """Hide the credentials of a URL from now on; refuse a secret that has a variable for itself.

    Raises:
        ValueError: it holds a secret; the message does not.
    """
    for secret in url_secrets(text):
        # A weak password, which is a word, is hidden where a URL stands, and not wherever the word does.
        if not is_word(secret):
            remember_secret(secret)
    variable = variable_in(text)
    if variable is not None:
        raise ValueError(
            f"holds the value of the environment variable {variable}, which by its name is a secret, and configs are "
            "copied into run folders and trackers; name a variable where a setting asks for one, or rename this one "
            "where its value is none"
        )
    if holds_known_token(text):
        raise ValueError(
            "holds an access token, and configs are copied into run folders and trackers; take it out of the file, "
            "revoke it, and set a new one in the environment (HF_TOKEN, WANDB_API_KEY, or the variable that the "
            "setting names)"
        )

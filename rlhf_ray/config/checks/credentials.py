"""Checks of texts in which a run has hidden a credential."""

from collections.abc import Iterator
from typing import Any

from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.redaction.texts import HIDDEN


def hidden_credentials(config: Any) -> Iterator[Problem]:
    """Find addresses from the `config.yaml` of a run, in which their credentials are hidden."""
    for key, text in _texts((), config):
        if f"{HIDDEN}@" in text or f"={HIDDEN}" in text:
            yield Problem(key, f"{HIDDEN} stands where a run left a credential out; write the whole address again")


def _texts(key: KeyPath, value: Any) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts((*key, name), inner)

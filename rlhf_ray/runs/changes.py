"""What of a run's config changed since its last start, and what of that may not change within a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rlhf_ray.config.reading.documents import KeyPath

LOCKED = ("model", "data", "seed")
"""Sections and keys of which a run has one value: with another in its midst it would be two experiments in one."""

TRAINED = ("trainer", "policy", "critics")
"""Sections whose adapters are the state of a run, as their models are."""

NOT_A_SETTING = "output"
"""Says where a run is; the same folder may be written in several ways."""

SHOWN_CHARACTERS = 60
"""A value is shown up to this length."""


class _Absent:
    def __repr__(self) -> str:
        return "(not there)"


ABSENT = _Absent()


@dataclass(frozen=True)
class Change:
    """A setting with its value at the last start and now."""

    key: KeyPath
    before: Any
    after: Any

    @property
    def name(self) -> str:
        """The key with dots."""
        return ".".join(map(str, self.key))

    @property
    def locked(self) -> bool:
        """Whether a run that has made a step refuses it."""
        first, *inner = self.key
        if first in TRAINED:
            # Which critics there are is state as well: a checkpoint holds no other.
            return inner[1:2] in ([], ["lora"]) if first == "critics" else inner[:1] == ["lora"]
        return first in LOCKED

    def __str__(self) -> str:
        return f"{self.name}: {_shown(self.before)} -> {_shown(self.after)}"


def changes_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Find all settings in which two resolved configs differ, each as deep as it is one."""
    return [change for change in _differences((), before, after) if change.key != (NOT_A_SETTING,)]


def _differences(key: KeyPath, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in {**before, **after}:
            yield from _differences((*key, name), before.get(name, ABSENT), after.get(name, ABSENT))
    elif _holds_sections(before) and _holds_sections(after):
        for place, (old, new) in enumerate(zip_longest(before, after, fillvalue=ABSENT)):
            yield from _differences((*key, place), old, new)
    elif before != after:
        yield Change(key, before, after)


def _holds_sections(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, Mapping) for item in value)


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."

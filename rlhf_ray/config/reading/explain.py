"""What is wrong with a config, in words for the person who wrote it."""

import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from rlhf_ray.config.base import Section
from rlhf_ray.config.errors import perhaps
from rlhf_ray.config.reading.documents import SHOWN_CHARACTERS, Document, KeyPath, Problem
from rlhf_ray.config.reading.overrides import Override
from rlhf_ray.config.reading.schema import child_names, child_types, doc_text
from rlhf_ray.config.reading.suggest import suggest, types_at
from rlhf_ray.redaction.texts import redact_text

SHOWN_KEYS = 8
"""Of a section for which a plain value was given."""

NOT_A_SECTION = {"model_type", "model_attributes_type", "dict_type"}
"""How pydantic calls a plain value where a section should stand."""


class Origins:
    """Places where keys were said: overrides, and lines of the file."""

    def __init__(self, document: Document | None, overrides: list[Override]) -> None:
        self._document = document
        self._overrides = overrides

    def line(self, problem: Problem) -> str:
        """Describe a problem in one line: file and line or option, key, and what is wrong."""
        dotted = ".".join(map(str, problem.key))
        for override in reversed(self._overrides):
            above = override.key == problem.key[: len(override.key)]
            in_file = self._document is not None and problem.key in self._document.lines
            below = problem.key == override.key[: len(problem.key)] and not in_file
            if above or (problem.key and below):
                inside = ".".join(map(str, problem.key[len(override.key) :]))
                return ": ".join(filter(None, [override.option, inside, problem.message]))
        origin = self._document.where(problem.key) if self._document else ""
        return ": ".join(filter(None, [origin, dotted, problem.message]))


def explain(error: ValidationError, data: Any, section: type[Section]) -> list[Problem]:
    """Turn pydantic's findings into one problem for each mistake, with the nearest valid name."""
    problems: dict[KeyPath, Problem] = {}
    meant: set[str] = set()
    # A default that depends on a field that is wrong itself is no mistake of its own.
    details = [one for one in error.errors(include_url=False) if one["type"] != "default_factory_not_called"]
    for detail in sorted(details, key=lambda one: one["type"] != "extra_forbidden"):
        # A section's own check ends with the section, which may be a member of a union and then ends with its name.
        key = _strip_tags(detail["loc"], data, section, keep_last=detail["type"] != "value_error")
        if key[-1:] == ("[key]",):
            problems[key[:-1]] = Problem(key[:-1], f"a name here is a text that is not empty, not {key[-2]!r}")
            continue
        if detail["type"] == "extra_forbidden" and (other := _of_other_kind(key, data, section)):
            problems[key] = Problem(key, other)
        elif detail["type"] == "extra_forbidden":
            hint, name = suggest(key, section)
            problems[key] = Problem(key, f"unknown key{hint}")
            meant.add(name)
        elif detail["type"] == "missing":
            if ".".join(map(str, key)) not in meant:
                problems[key] = Problem(key, f"missing{_documentation(key, section)}")
        else:
            text = str(detail["ctx"]["error"]) if detail["type"] == "value_error" else _message(detail, key, section)
            problems.setdefault(key, _keyed(Problem(key, text), section))
    return list(problems.values())


def _keyed(problem: Problem, section: type[Section]) -> Problem:
    """Read the key out of a section's own check, whose message starts with it."""
    name, colon, rest = problem.message.partition(": ")
    if colon and name in child_names(types_at(problem.key, section)):
        return Problem((*problem.key, name), rest)
    return problem


def _strip_tags(location: tuple[str | int, ...], data: Any, section: type[Section], keep_last: bool) -> KeyPath:
    """Leave out the names of union members that pydantic puts between keys."""
    key: list[str | int] = []
    here, expected = data, [section]
    for position, step in enumerate(location):
        # A kind's name may also be a key beside it, as `function` is.
        if position < len(location) - 1 and isinstance(here, dict) and here.get("kind") == step:
            continue
        below = [one for found in (child_types(one, step) for one in expected) for one in found or []]
        is_last = keep_last and position == len(location) - 1
        inside = step in here if isinstance(here, dict) else isinstance(here, list) and step in range(len(here))
        if not (inside or below or is_last):
            continue
        key.append(step)
        expected = below
        here = here[step] if inside else None
    return tuple(key)


def _of_other_kind(key: KeyPath, data: Any, section: type[Section]) -> str:
    """Say what to do about a key of another kind of section than stands there; empty for other keys."""
    kinds = {kind: one for one in _sections(types_at(key[:-1], section)) for kind in _kinds([one])}
    having = [kind for kind, one in kinds.items() if key[-1] in one.model_fields]
    for step in key[:-1]:
        data = data[step]
    given = data.get("kind")
    if not having or given not in kinds:
        return ""
    shared = set.intersection(*(set(one.model_fields) for one in kinds.values()))
    own = ", ".join(name for name in kinds[given].model_fields if name not in shared) or "none"
    option = "--" + ".".join(map(str, key[:-1]))
    return (
        f"is a key of kind {' and '.join(having)}, but the kind here is {given}, whose own keys are {own}; "
        f"leave it out, or replace the whole by {option} '{{kind: {given}, ...}}'"
    )


def _documentation(key: KeyPath, section: type[Section]) -> str:
    for one in _sections(types_at(key[:-1], section)):
        if key[-1] in one.model_fields:
            return f": {doc_text(one.model_fields[str(key[-1])])}"
    return ""


def _message(detail: Any, key: KeyPath, section: type[Section]) -> str:
    text = detail["msg"].removeprefix("Value error, ")
    text = text[0].lower() + text[1:]
    if detail["type"].startswith("union_tag"):
        kinds = list(dict.fromkeys(str(value) for value in _kinds(types_at(key, section))))
        found = detail["ctx"].get("tag")
        if found is None:
            return f"kind is missing: one of {', '.join(kinds)}"
        return f"kind {found!r} is not one of {', '.join(kinds)}{perhaps(found, kinds)}"
    if detail["type"] == "string_too_short" and detail["input"] == "":
        return "must not be empty"
    choices = [str(value) for one in types_at(key, section) for value in _literals(one)]
    shown = redact_text(repr(detail["input"]))
    if len(shown) > SHOWN_CHARACTERS:
        shown = f"{shown[:SHOWN_CHARACTERS]}..."
    if detail["type"] in NOT_A_SECTION:
        return f"{_section_text(types_at(key, section))}, not {shown}"
    nothing = "; YAML's word for nothing is null" if detail["input"] == "None" else ""
    return f"{text}, not {shown}{nothing or perhaps(str(detail['input']), choices)}"


def _section_text(annotations: list[Any]) -> str:
    """Say what should stand where a plain value does."""
    if kinds := list(_kinds(annotations)):
        return f"must be a section with a kind, one of {', '.join(map(str, kinds))}"
    names = child_names(annotations)
    if not names:
        return "must be a section of names with values"
    more = ", ..." if len(names) > SHOWN_KEYS else ""
    return f"must be a section (its keys: {', '.join(names[:SHOWN_KEYS])}{more})"


def _kinds(annotations: list[Any]) -> Iterator[Any]:
    for option in _sections(annotations):
        if "kind" in option.model_fields:
            yield from _literals(option.model_fields["kind"].annotation)


def _sections(annotations: list[Any]) -> Iterator[type[Section]]:
    """Yield the sections among some types, each member of a union."""
    for one in annotations:
        if isinstance(one, type) and issubclass(one, Section):
            yield one
        elif get_origin(one) is Annotated:
            yield from _sections([get_args(one)[0]])
        elif get_origin(one) in (Union, types.UnionType):
            yield from _sections(list(get_args(one)))


def _literals(annotation: Any) -> tuple[Any, ...]:
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(value for option in get_args(annotation) for value in _literals(option))
    return get_args(annotation) if get_origin(annotation) is Literal else ()

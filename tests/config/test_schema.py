import re
from collections.abc import Iterator
from math import inf, nan
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import Field, ValidationError

from rlhf_ray import cli
from rlhf_ray.config.base import Section
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.docs_page import configuration_page
from rlhf_ray.config.reading.schema import bounds_of, describe, type_text
from rlhf_ray.config.reading.verbs import SCHEMAS, import_schema
from rlhf_ray.config.rollout import RolloutConfig

FIELD_LIMIT = 180
"""One verb trains all of the policy-gradient family, with and without adapters and limits of cost, in turns or
overlapped, alone or with an environment, on clusters whose processes need variables and deadlines of their own. A new
key has to be worth its place.
"""


def reachable_sections(section: type[Section]) -> set[type[Section]]:
    """The section, those below it and those it inherits from."""
    found: set[type[Section]] = set()
    queue: list[Any] = [section]
    while queue:
        current = queue.pop()
        if not (isinstance(current, type) and issubclass(current, Section)):
            queue += get_args(current)
        elif current not in found and current is not Section:
            found.add(current)
            queue += [*current.__bases__, *(info.annotation for info in current.model_fields.values())]
    return found


def test_ppo_stays_below_the_limit_of_fields() -> None:
    # A shared type counts once, wherever it is used.
    own = [part.model_fields.keys() & vars(part).get("__annotations__", {}) for part in reachable_sections(PPOConfig)]
    assert sum(map(len, own)) < FIELD_LIMIT


@pytest.mark.parametrize("verb", SCHEMAS)
def test_every_field_is_documented(verb: str) -> None:
    schema = import_schema(SCHEMAS[verb])
    assert [field.path for field in describe(schema) if not field.doc] == []
    assert [section.__name__ for section in reachable_sections(schema) if not section.__doc__] == []


@pytest.mark.parametrize("verb", SCHEMAS)
def test_paths_are_told_apart(verb: str) -> None:
    paths = [field.path for field in describe(import_schema(SCHEMAS[verb]))]
    assert len(paths) == len(set(paths))


def test_variants_of_a_list_are_all_described() -> None:
    paths = {field.path for field in describe(PPOConfig)}
    assert {"rewards.N.kind", "rewards.N.path", "rewards.N.function", "rewards.N.weight"} <= paths
    assert {"critics.NAME.zero_stage", "evaluation.data.max_prompt_tokens", "groups.NAME.nodes"} <= paths


def test_types_in_words() -> None:
    assert type_text(Annotated[int, Field(gt=0)].__origin__) == "integer"
    assert type_text(Literal["a", "b"]) == "one of a, b"
    assert type_text(float | None) == "number or null"
    assert type_text(tuple[float, float]) == "[number, number]"


def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == configuration_page(), "run `make docs`"


def test_the_page_tells_every_key_once_and_its_links_lead_there() -> None:
    page = configuration_page()
    tables = dict(re.findall(r"^##+ (.*?)$(.*?)(?=^##|\Z)", page, re.M | re.S))
    anchors = {title.lower().replace(" ", "-"): title for title in tables}
    links = set(re.findall(r"\[[^\]]*\]\(#([^)]*)\)", page))
    assert links <= anchors.keys()

    def keys(table: str, prefix: str = "") -> Iterator[str]:
        for path, kind in re.findall(r"^\| `(.*?)` \| (.*?) \|", table, re.M):
            yield prefix + path
            step = ".NAME" if kind.startswith("mapping") else ".N" if kind.startswith("list") else ""
            for link in re.findall(r"\(#(.*?)\)", kind):
                yield from keys(tables[anchors[link]], f"{prefix}{path}{step}.")

    for verb, schema in SCHEMAS.items():
        expected = {field.path for field in describe(import_schema(schema))}
        assert set(keys(tables[f"rlhf {verb}"])) == expected
    shared = [title for title in tables if not title.startswith("rlhf ")]
    assert len(shared) == len(set(shared))


ALL_SECTIONS = {
    section
    for schema in [*SCHEMAS.values(), *(tool.schema for tool in cli.TOOLS.values())]
    for section in reachable_sections(import_schema(schema))
}
ALL_FIELDS = [(section, name, info) for section in ALL_SECTIONS for name, info in section.model_fields.items()]

NEVER: dict[type, list[Any]] = {
    float: [inf, -inf, nan, True, "1", 1e-300, 1e300, -1e300, None],
    int: [True, 1.0, "1", 10**30, -(10**30), inf, None],
    str: ["", "a\0b", 3, None],
    bool: [0, 1.0, "true", None],
}
"""What no setting of a type takes."""
NO_CHOICE = [0.0, 1.0, False, True, "", None]
"""Nor any choice: an integer is written as one."""


def _leaves(annotation: Any, marks: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """The plain types and choices inside an annotation, each with its own constraints."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from _leaves(inner, [*marks, *more])
    elif get_origin(annotation) is Literal or annotation in NEVER:
        yield annotation, marks
    else:
        for inner in get_args(annotation)[get_origin(annotation) is dict :]:
            yield from _leaves(inner, marks)


def _filled(annotation: Any, bad: Any) -> Any:
    """A value of the annotation's shape with a bad one at each of its plain places."""
    if get_origin(annotation) is Annotated:
        return _filled(get_args(annotation)[0], bad)
    if get_origin(annotation) is list:
        return [_filled(get_args(annotation)[0], bad)]
    if get_origin(annotation) is tuple:
        return [_filled(inner, bad) for inner in get_args(annotation)]
    if get_origin(annotation) is dict:
        return {"name": _filled(get_args(annotation)[1], bad)}
    options = [one for one in get_args(annotation) if one is not type(None)]
    return _filled(options[0], bad) if len(options) == 1 and get_origin(annotation) is not Literal else bad


def _refused(section: type[Section], name: str, value: Any) -> bool:
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        return any(detail["loc"][:1] == (name,) for detail in error.errors()) or any(
            # A section's own check runs once all its fields are right.
            detail["type"] == "value_error" and detail["loc"] == ()
            for detail in error.errors()
        )
    return False


def test_every_number_has_two_ends() -> None:
    unbounded = [
        f"{section.__name__}.{name}"
        for section, name, info in ALL_FIELDS
        for kind, marks in _leaves(info.annotation, info.metadata)
        for ends in [list(bounds_of(marks))]
        if kind in (int, float)
        if not any(isinstance(end, Gt | Ge) for end in ends) or not any(isinstance(end, Lt | Le) for end in ends)
    ]
    assert unbounded == []


def test_no_field_takes_what_is_not_of_its_type() -> None:
    taken = []
    for section, name, info in ALL_FIELDS:
        for kind, marks in _leaves(info.annotation, info.metadata):
            may_be_empty = MinLen(0) in bounds_of(marks)
            for value in NEVER.get(kind, NO_CHOICE):
                filled = _filled(info.annotation, value)
                absent = filled is None and type(None) in get_args(info.annotation)
                if not (absent or (may_be_empty and value == "") or _refused(section, name, filled)):
                    taken.append((f"{section.__name__}.{name}", filled))
    assert taken == []


@pytest.mark.parametrize("value", [nan, inf, 1e-300, "a\0b", {"inner": [1.0, -inf]}])
def test_what_is_handed_to_a_library_is_finite_too(value: Any) -> None:
    assert _refused(RolloutConfig, "engine", {"compilation_config": value})

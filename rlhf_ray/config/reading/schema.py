"""The schema as data: every field with its path, type, default and documentation.

`--help`, docs/configuration.md, suggestions and the command line's overrides all come from here.
"""

import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from rlhf_ray.config.base import Section
from rlhf_ray.config.numbers import LARGEST, LARGEST_INTEGER

REQUIRED = "required"

COMMON_ENDS = (LARGEST_INTEGER, LARGEST, -LARGEST)
"""Ends of numbers that nothing narrower is known of; the page of settings says them once."""


@dataclass(frozen=True)
class FieldDoc:
    """One field a user may set."""

    path: str
    """Dotted; NAME stands for a name of your choice, N for a position in a list."""
    type: str
    default: str
    doc: str


def describe(
    section: type[Section], prefix: str = "", elsewhere: Mapping[type[Section], str] | None = None
) -> Iterator[FieldDoc]:
    """Yield all fields below a section, depth first, in the order of the schema.

    Args:
        section: the class of a config, or of a part of it.
        prefix: what its keys stand under.
        elsewhere: sections whose fields are left out, and what is written for them.
    """
    told = elsewhere or {}
    for name, info in section.model_fields.items():
        path = f"{prefix}{name}"
        sections = list(sections_of(info.annotation))
        if not sections:
            yield FieldDoc(path, type_text(info.annotation, info.metadata), _default(info), doc_text(info))
            continue
        step, children = _step(info.annotation), []
        for child in sections:
            for field in () if child in told else describe(child, f"{path}{step}.", told):
                if field not in children:
                    children.append(field)
        optional = type(None) in get_args(_bare(info.annotation))
        words = " or ".join(told[child] for child in sections) if all(child in told for child in sections) else None
        yield FieldDoc(
            path, _container_text(info.annotation, optional, words), _section_default(info, optional), doc_text(info)
        )
        yield from _mark_variants(children)


def child_types(annotation: Any, key: str | int) -> list[Any] | None:
    """List the types that stand under a key of a value of this type.
    None: any key and type; an empty list: no such key.
    """
    bare = _bare(annotation)
    if bare is Any:
        return None
    if get_origin(bare) in (Union, types.UnionType):
        found: list[Any] = []
        for option in get_args(bare):
            below = child_types(option, key)
            if below is None:
                return None
            found += below
        return found
    if isinstance(bare, type) and issubclass(bare, Section):
        return [bare.model_fields[key].annotation] if key in bare.model_fields else []
    if get_origin(bare) is dict:
        return [get_args(bare)[1]]
    if get_origin(bare) in (list, tuple) and isinstance(key, int):
        return [get_args(bare)[0]]
    return []


def child_names(annotations: list[Any]) -> list[str]:
    """List the names of the fields of the sections among some types."""
    names: dict[str, None] = {}
    for annotation in annotations:
        bare = _bare(annotation)
        options = get_args(bare) if get_origin(bare) in (Union, types.UnionType) else [bare]
        for option in map(_bare, options):
            if isinstance(option, type) and issubclass(option, Section):
                names |= dict.fromkeys(option.model_fields)
    return list(names)


def accepts(annotation: Any, kind: type) -> bool:
    """Tell whether a value of a plain type (str, bool, list, NoneType) fits this annotation."""
    bare = _bare(annotation)
    if bare is Any:
        return True
    if get_origin(bare) in (Union, types.UnionType):
        return any(accepts(option, kind) for option in get_args(bare))
    if get_origin(bare) is Literal:
        return any(isinstance(value, kind) for value in get_args(bare))
    return bare is kind or get_origin(bare) is kind


def type_text(annotation: Any, metadata: list[Any] | tuple[Any, ...] = ()) -> str:
    """Return a type in words: `integer > 0`, `one of k1, k2, k3`, `text or null`."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return type_text(inner, [*metadata, *more])
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(
            type_text(option, metadata if option is not type(None) else ()) for option in get_args(annotation)
        )
    if get_origin(annotation) is Literal:
        values = [str(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else "one of " + ", ".join(values)
    if get_origin(annotation) is list:
        return f"list of {type_text(get_args(annotation)[0])}"
    if get_origin(annotation) is tuple:
        return "[" + ", ".join(type_text(part) for part in get_args(annotation)) + "]"
    if get_origin(annotation) is dict:
        return "mapping"
    names = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null"}
    return " ".join([names.get(annotation, str(annotation)), *_bounds(metadata)])


def doc_text(info: FieldInfo) -> str:
    """Return the documentation of a field on one line."""
    return without_breaks(info.description or "")


def without_breaks(text: str) -> str:
    """Return a documentation on one line, with YAML's word for None."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split()))


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    """Yield the ends of a number, without those that all numbers of its kind have."""
    ends = {type(mark): mark for mark in bounds_of(metadata)}
    for kind, sign in (
        (annotated_types.Gt, ">"),
        (annotated_types.Ge, ">="),
        (annotated_types.Lt, "<"),
        (annotated_types.Le, "<="),
    ):
        if kind in ends and (end := getattr(ends[kind], kind.__name__.lower())) not in COMMON_ENDS:
            yield f"{sign} {end:,}" if end >= 1000 else f"{sign} {end:g}"


def bounds_of(metadata: list[Any] | tuple[Any, ...]) -> Iterator[Any]:
    """Yield the constraints among a type's marks, those in a field's own description too."""
    for mark in metadata:
        if isinstance(mark, FieldInfo):
            yield from bounds_of(mark.metadata)
        else:
            yield mark


def _bare(annotation: Any) -> Any:
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def sections_of(annotation: Any) -> Iterator[type[Section]]:
    """Yield the sections that a field holds: itself, in a list or a mapping, or one of several."""
    bare = _bare(annotation)
    if isinstance(bare, type) and issubclass(bare, Section):
        yield bare
    elif get_origin(bare) is not Literal:
        for option in get_args(bare):
            yield from sections_of(option)


def _step(annotation: Any) -> str:
    origin = get_origin(_bare(annotation))
    return ".NAME" if origin is dict else ".N" if origin is list else ""


def _container_text(annotation: Any, optional: bool, words: str | None = None) -> str:
    origin = get_origin(_bare(annotation))
    many, one = words or "sections", words or "section"
    text = f"mapping of names to {many}" if origin is dict else f"list of {many}" if origin is list else one
    return f"{text} or null" if optional else text


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return REQUIRED
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _section_default(info: FieldInfo, optional: bool) -> str:
    if info.is_required():
        return REQUIRED
    if optional and info.get_default(call_default_factory=True, validated_data={}) is None:
        return "null"
    value = info.get_default(call_default_factory=True, validated_data={})
    return ", ".join(value) if isinstance(value, dict) else ""


def _mark_variants(children: list[FieldDoc]) -> Iterator[FieldDoc]:
    """Join fields of the same path that differ by variant, such as `kind`, into one line."""
    merged: dict[str, FieldDoc] = {}
    for field in children:
        seen = merged.get(field.path)
        if seen is None:
            merged[field.path] = field
        elif seen.type != field.type:
            merged[field.path] = FieldDoc(field.path, f"{seen.type} or {field.type}", REQUIRED, seen.doc)
    yield from merged.values()

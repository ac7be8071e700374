"""One type for each column of rows, which Parquet wants before the first row is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf_ray.data.cleaning.privacy import MASKS
from rlhf_ray.data.file_formats import Row

EXACT = 2**53
"""Whole numbers up to here are floats without loss."""
_MASKS = frozenset(MASKS.values())


class MixedColumn(Exception):
    """A column's values have no type in common; `column` is its name, the message says what they are."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


@dataclass(frozen=True)
class _Leaf:
    """What is neither list nor object."""

    type: Any
    """Of pyarrow."""
    big: bool = False
    """A whole number is above `EXACT`."""
    masks: bool = False
    """All texts are masks of private data: numbers may stand beside them."""
    numbers: bool = False
    """Numbers stand beside masks, as texts: no other texts may."""


@dataclass(frozen=True)
class _List:
    items: "_Kind"


@dataclass(frozen=True)
class _Object:
    fields: Mapping[str, "_Kind"]


_Kind = _Leaf | _List | _Object


class _Mixed(Exception):
    """Two kinds have no type in common."""


class ColumnTypes:
    """Types of columns in the order in which they appear, from rows that come batch by batch.

    What is absent or null has any type; whole numbers beside others become floats; numbers beside masked ones become
    texts; objects have all their keys, and those that never have a key are null, for Parquet knows none.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {}

    def add(self, rows: Sequence[Row]) -> None:
        """Take further rows into account.

        Raises:
            MixedColumn: they have values that do not go together, with one another or with earlier ones.
        """
        for name in dict.fromkeys(name for row in rows for name in row):
            self._kinds[name] = self._united(name, [row.get(name) for row in rows])

    def schema(self) -> Any:
        """All columns with their types, as a `pyarrow.Schema`."""
        import pyarrow

        return pyarrow.schema([pyarrow.field(name, _type(kind)) for name, kind in self._kinds.items()])

    def _united(self, name: str, values: list[Any]) -> _Kind:
        import pyarrow

        try:
            found = _kind_of(values)
            return _unite(self._kinds[name], found) if name in self._kinds else found
        except (pyarrow.ArrowException, OverflowError, _Mixed) as error:
            raise MixedColumn(name, str(error).splitlines()[0]) from None


def fitted(value: Any, kind: Any) -> Any:
    """A value as a column of this `pyarrow.DataType` holds it, where `ColumnTypes` found the type."""
    import pyarrow.types as types

    if value is None or types.is_null(kind):
        return None
    if types.is_string(kind):
        return str(value) if _is_number(value) else value
    if types.is_list(kind):
        return [fitted(inner, kind.value_type) for inner in value]
    if types.is_struct(kind):
        return {field.name: fitted(value.get(field.name), field.type) for field in kind}
    return value


def _kind_of(values: list[Any]) -> _Kind:
    """The kind of values that come together."""
    import pyarrow

    try:
        return _kind(pyarrow.array(values))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        # Numbers and masks are told apart; if other things do not go together either, that shows again.
        numbers = pyarrow.array(_without(values, _is_mask))
        return _unite(_kind(numbers), _kind(pyarrow.array(_without(values, _is_number))))


def _is_mask(value: Any) -> bool:
    return isinstance(value, str) and value in _MASKS


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _without(value: Any, removed: Callable[[Any], bool]) -> Any:
    """A value with nulls where it, or what is in it, is to be removed."""
    if isinstance(value, Mapping):
        return {key: _without(inner, removed) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without(inner, removed) for inner in value]
    return None if removed(value) else value


def _kind(array: Any) -> _Kind:
    """The kind of a `pyarrow.Array`, or of one in pieces."""
    import pyarrow
    import pyarrow.compute as compute
    from pyarrow import types

    if isinstance(array, pyarrow.ChunkedArray):
        array = pyarrow.concat_arrays(array.chunks)
    if types.is_list(array.type):
        return _List(_kind(array.flatten()))
    if types.is_struct(array.type):
        names = [field.name for field in array.type]
        return _Object(dict(zip(names, map(_kind, array.flatten()), strict=True)))
    if types.is_integer(array.type):
        bounds = compute.min_max(array).as_py()
        return _Leaf(array.type, big=max(bounds["max"] or 0, -(bounds["min"] or 0)) > EXACT)
    if types.is_string(array.type):
        masks = compute.is_in(array, value_set=pyarrow.array(sorted(_MASKS)))
        return _Leaf(array.type, masks=compute.all(compute.or_(masks, array.is_null())).as_py())
    return _Leaf(array.type)


def _unite(one: _Kind, other: _Kind) -> _Kind:
    """The kind that holds values of both.

    Raises:
        _Mixed: there is none.
    """
    if _is_empty(one) or _is_empty(other):
        return other if _is_empty(one) else one
    if isinstance(one, _List) and isinstance(other, _List):
        return _List(_unite(one.items, other.items))
    if isinstance(one, _Object) and isinstance(other, _Object):
        both = one.fields.keys() & other.fields.keys()
        united = {name: _unite(one.fields[name], other.fields[name]) for name in both}
        return _Object({**one.fields, **other.fields, **united})
    if isinstance(one, _Leaf) and isinstance(other, _Leaf):
        return _unite_leaves(one, other)
    raise _Mixed(f"{_type(one)} vs {_type(other)}")


def _is_empty(kind: _Kind) -> bool:
    """Whether only nulls were seen."""
    import pyarrow

    return isinstance(kind, _Leaf) and pyarrow.types.is_null(kind.type)


def _unite_leaves(one: _Leaf, other: _Leaf) -> _Leaf:
    import pyarrow
    from pyarrow import types

    def is_number(leaf: _Leaf) -> bool:
        return bool(types.is_integer(leaf.type) or types.is_floating(leaf.type))

    numbers = any(leaf.numbers or is_number(leaf) for leaf in (one, other))
    if (one.masks and (other.masks or is_number(other))) or (other.masks and is_number(one)):
        return _Leaf(pyarrow.string(), masks=True, numbers=numbers)
    if numbers and any(types.is_string(leaf.type) for leaf in (one, other)):
        raise _Mixed("numbers vs string")
    if one.type == other.type:
        return _Leaf(one.type, one.big or other.big)
    if any(leaf.big for leaf in (one, other)) and any(types.is_floating(leaf.type) for leaf in (one, other)):
        raise _Mixed("whole numbers above 2^53 beside fractions, which would take their last digits")
    schemas = [pyarrow.schema([pyarrow.field("", leaf.type)]) for leaf in (one, other)]
    united = pyarrow.unify_schemas(schemas, promote_options="permissive").field(0).type
    return _Leaf(united, one.big or other.big)


def _type(kind: _Kind) -> Any:
    import pyarrow

    if isinstance(kind, _List):
        return pyarrow.list_(_type(kind.items))
    if isinstance(kind, _Object):
        if not kind.fields:
            return pyarrow.null()
        return pyarrow.struct([pyarrow.field(name, _type(inner)) for name, inner in kind.fields.items()])
    return kind.type

"""One type for each column of rows, which Parquet wants before the first row is written."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_ray.data.cleaning.privacy import MASKS
from rlhf_ray.data.file_formats import Row

EXACT = 2**53
"""Whole numbers up to here are floats without loss."""
_MASKS = frozenset(MASKS.values())
_ITEMS = None
"""Stands in a path for the items of a list."""
_Path = tuple[str | None, ...]
"""From the column to a value that is neither list nor object, over keys of objects."""


class MixedColumn(Exception):
    """A column's values have no type in common; `column` is its name, the message says what they are."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


class ColumnTypes:
    """Types of columns in the order in which they appear, from rows that come batch by batch.

    What is absent or null has any type; whole numbers beside others become floats; numbers beside masked ones become
    texts; objects have all their keys, and those that never have a key are null, for Parquet knows none.
    """

    def __init__(self) -> None:
        self._types: dict[str, Any] = {}
        """Of pyarrow; masks of private data, which may stand for a text or a number, count as nulls."""
        self._masked: set[_Path] = set()
        """Where masks were seen."""
        self._big: set[_Path] = set()
        """Where whole numbers above `EXACT` were seen."""

    def add(self, rows: Sequence[Row]) -> None:
        """Take further rows into account.

        Raises:
            MixedColumn: they have values that do not go together, with one another or with earlier ones.
        """
        import pyarrow

        for name in dict.fromkeys(name for row in rows for name in row):
            try:
                self._take(name, [row.get(name) for row in rows])
            except (pyarrow.ArrowException, OverflowError) as error:
                raise MixedColumn(name, str(error).splitlines()[0].rpartition("types: ")[2]) from None

    def schema(self) -> Any:
        """Return all columns with their types, as a `pyarrow.Schema`."""
        import pyarrow

        return pyarrow.schema([(name, self._stored(kind, (name,))) for name, kind in self._types.items()])

    def _take(self, name: str, values: list[Any]) -> None:
        import pyarrow
        from pyarrow import types

        array, walk = _array(values, (name,))
        earlier = self._types.get(name, pyarrow.null())
        both = [pyarrow.schema([(name, kind)]) for kind in (earlier, array.type)]
        united = pyarrow.unify_schemas(both, promote_options="permissive").field(0).type
        masked = self._masked | walk.masked
        big = self._big | {path for path, leaf in _leaves(array, (name,)) if _is_big(leaf)}
        if any(path in walk.truths and types.is_floating(leaf.type) for path, leaf in _leaves(array, (name,))):
            # pyarrow takes `true` behind a fraction for 1.
            raise MixedColumn(name, "double vs bool")
        leaves = {path: leaf.type for path, leaf in _leaves(pyarrow.nulls(0, united), (name,))}
        for path in masked:
            if path[0] == name and not (path in leaves and _may_be_masked(leaves[path])):
                raise MixedColumn(name, f"masks of private data vs {leaves.get(path, united)}")
        if any(path in big - masked and types.is_floating(kind) for path, kind in leaves.items()):
            raise MixedColumn(name, "whole numbers above 2^53 beside fractions, which would take their last digits")
        self._types[name], self._masked, self._big = united, masked, big

    def _stored(self, kind: Any, path: _Path) -> Any:
        """Return a type as Parquet holds it."""
        import pyarrow
        from pyarrow import types

        if types.is_list(kind):
            return pyarrow.list_(self._stored(kind.value_type, (*path, _ITEMS)))
        if types.is_struct(kind):
            fields = [(inner.name, self._stored(inner.type, (*path, inner.name))) for inner in kind]
            return pyarrow.struct(fields) if fields else pyarrow.null()
        return pyarrow.string() if path in self._masked else kind


def fitted(value: Any, kind: Any) -> Any:
    """Return a value as a column of this `pyarrow.DataType` holds it, where `ColumnTypes` found the type."""
    import pyarrow.types as types

    if value is None or types.is_null(kind):
        return None
    if types.is_string(kind):
        return value if isinstance(value, str) else str(value)
    if types.is_list(kind):
        return [fitted(inner, kind.value_type) for inner in value]
    if types.is_struct(kind):
        return {inner.name: fitted(value.get(inner.name), inner.type) for inner in kind}
    return value


@dataclass
class _Walk:
    """Facts about values that the types of pyarrow do not tell."""

    masked: set[_Path] = field(default_factory=set)
    """Where masks stood."""
    truths: set[_Path] = field(default_factory=set)
    """Where true or false stands, as far as it was looked for."""

    def without_masks(self, value: Any, path: _Path) -> Any:
        """Return a value with nulls for masks."""
        if isinstance(value, Mapping):
            return {key: self.without_masks(inner, (*path, key)) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.without_masks(inner, (*path, _ITEMS)) for inner in value]
        if isinstance(value, bool):
            self.truths.add(path)
        elif isinstance(value, str) and value in _MASKS:
            self.masked.add(path)
            return None
        return value


def _array(values: list[Any], path: _Path) -> tuple[Any, _Walk]:
    """Make a `pyarrow.Array` of values, with nulls for masks."""
    import pyarrow

    walk = _Walk()
    try:
        array = pyarrow.array(values)
        known = not any(_has_mask(leaf) or pyarrow.types.is_floating(leaf.type) for _, leaf in _leaves(array, path))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError):
        # Numbers may stand beside masks; if other things do not go together either, that shows again.
        known = False
    if not known:
        array = pyarrow.array([walk.without_masks(value, path) for value in values])
    return array, walk


def _leaves(array: Any, path: _Path) -> Iterator[tuple[_Path, Any]]:
    """Yield the values of a `pyarrow.Array`, or of one in pieces, that are neither lists nor objects."""
    import pyarrow
    from pyarrow import types

    if isinstance(array, pyarrow.ChunkedArray):
        array = pyarrow.concat_arrays(array.chunks)
    if types.is_list(array.type):
        yield from _leaves(array.flatten(), (*path, _ITEMS))
    elif types.is_struct(array.type):
        for key, inner in zip(array.type, array.flatten(), strict=True):
            yield from _leaves(inner, (*path, key.name))
    else:
        yield path, array


def _has_mask(leaf: Any) -> bool:
    import pyarrow
    import pyarrow.compute as compute

    masks = pyarrow.array(sorted(_MASKS))
    return pyarrow.types.is_string(leaf.type) and bool(compute.any(compute.is_in(leaf, value_set=masks)).as_py())


def _is_big(leaf: Any) -> bool:
    import pyarrow
    import pyarrow.compute as compute

    if not pyarrow.types.is_integer(leaf.type):
        return False
    bounds = compute.min_max(leaf).as_py()
    return max(bounds["max"] or 0, -(bounds["min"] or 0)) > EXACT


def _may_be_masked(kind: Any) -> bool:
    from pyarrow import types

    return any(is_kind(kind) for is_kind in (types.is_null, types.is_string, types.is_integer, types.is_floating))

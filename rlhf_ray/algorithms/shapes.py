"""Shapes of arguments, held to their annotations: [tokens, 1] beside [tokens] would broadcast without a word."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_args

from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def check_shapes(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Return the function such that it raises ValueError for tensors whose shapes are not those that it announces.

    Sizes of one name must be equal in all arguments: `tokens`; `rows+1`, which is one more; `*n`, which is any shape.
    """
    signature = inspect.signature(function)
    announced = {name: _dimensions(parameter.annotation) for name, parameter in signature.parameters.items()}
    order = list(announced)

    @wraps(function)
    def checked(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        sizes: dict[str, Any] = {}
        for name, value in [*zip(order, args, strict=False), *options.items()]:
            dimensions = announced.get(name)
            if dimensions is not None and isinstance(value, Tensor):
                found = _sizes(dimensions, tuple(value.shape))
                if found is None or any(sizes.setdefault(key, size) != size for key, size in found.items()):
                    known = ", ".join(f"{key} = {size}" for key, size in sizes.items())
                    raise ValueError(
                        f"{function.__qualname__}: {name} has the shape {tuple(value.shape)}, but must have "
                        f"[{', '.join(dimensions)}]" + (f", with {known}" if known else "")
                    )
        return function(*args, **options)

    return checked


def _dimensions(annotation: Any) -> list[str] | None:
    """Name the dimensions in an annotation, or in the one tensor of a union; None for anything else."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and hasattr(kind, "dim_str"):
            return str(kind.dim_str).split()
    return None


def _sizes(dimensions: list[str], shape: tuple[int, ...]) -> dict[str, Any] | None:
    """Return the size of each name; None if there are more or fewer dimensions than names."""
    if dimensions and dimensions[0].startswith("*"):
        return {dimensions[0]: shape}
    if len(dimensions) != len(shape):
        return None
    named = (dimension.partition("+") for dimension in dimensions)
    return {name: size - int(more or 0) for (name, _, more), size in zip(named, shape, strict=True)}

"""Fingerprints of weights: sums over their bits, by which trainer and engine tell exactly whether they hold the same.

A sum does not depend on the order of the elements. So it is the same whether query, key and value lie in three tensors
or fused in one, and, added over the workers of an engine, however the rows and columns are divided. It sees the one
rounding step in a hundred weights that an update at a learning rate of 1e-6 makes in bfloat16, which no comparison of
log-probabilities can. For engines on GPUs all of a weight is summed, for those on CPU a few columns of it.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

BITS: dict[int, torch.dtype] = {2: torch.int16, 4: torch.int32}
"""Integers as large as an element of so many bytes."""

CHUNK_ELEMENTS = {"cpu": 2**16, "cuda": 2**26}
"""Elements that are summed at a time: on CPU what a core's cache holds, on GPU 128 MB of memory."""

COLUMNS = 4
"""Columns of a matrix that are summed where it is not summed whole."""

SMALLEST = 1e-30

OUTSIDE = "outside of the layers"
"""Embedding, last norm, output layer: weights whose name has no number."""


def bit_sum(weight: Shaped[Tensor, "..."], dtype: torch.dtype) -> int:
    """Return the sum of x (x + 1) over the elements' bits, each read as an integer x, modulo 2^16 or 2^32.

    The product makes a step of one unit in the last place count by the element that takes it: summed alone, steps up
    and down would cancel. Zero counts nothing, so padding does not show.

    Args:
        weight: of any shape, on any device.
        dtype: type in which it is compared, that of the wire: an engine may keep small tensors in a wider one.
    """
    bits = weight.detach().to(dtype).reshape(-1).view(BITS[dtype.itemsize])
    size = CHUNK_ELEMENTS["cpu" if weight.device.type == "cpu" else "cuda"]
    product = torch.empty(min(size, bits.numel()), dtype=bits.dtype, device=bits.device)
    total = 0
    for chunk in bits.split(size):
        total += int(torch.addcmul(chunk, chunk, chunk, out=product[: chunk.numel()]).sum(dtype=bits.dtype))
    return total % modulus(dtype)


def column_sum(weight: Shaped[Tensor, "..."], dtype: torch.dtype) -> int:
    """Return the bit sum of a few columns of a matrix, and of all of another weight.

    An update moves all columns, and reading a few costs nothing beside a copy. Columns are what a layer gives that
    keeps nothing but a packed copy: see `cpu_weights`.
    """
    if weight.ndim != 2:
        return bit_sum(weight, dtype)
    return bit_sum(settled(weight.detach()[:, summed_columns(weight.shape[1])]), dtype)


def summed_columns(width: int) -> list[int]:
    """Choose the columns of a matrix that are summed."""
    return sorted({(2 * n + 1) * width // (2 * COLUMNS) for n in range(COLUMNS)})


def settled(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return values with 0 for the smallest and for negative zero: products lose them on some processors."""
    return torch.where(values.abs() < SMALLEST, 0.0, values)


def modulus(dtype: torch.dtype) -> int:
    """Return what sums over elements of this type are taken modulo of."""
    return 1 << (8 * dtype.itemsize)


def layer_of(name: str) -> str:
    """Return which layer a weight belongs to: trainer and engine number them alike, whatever else they call them."""
    number = re.search(r"\.(\d+)\.", name)
    return OUTSIDE if number is None else f"layer {number[1]}"


def by_layer(sums: Mapping[str, int], dtype: torch.dtype) -> dict[str, int]:
    """Add the sums of the weights of each layer."""
    found: dict[str, int] = {}
    for name, value in sums.items():
        layer = layer_of(name)
        found[layer] = (found.get(layer, 0) + value) % modulus(dtype)
    return found


def over_workers(workers: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Add the sums of tensor-parallel workers; what is equal on all of them is one weight that each holds."""
    if len(workers) == 1:
        return dict(workers[0])
    return {
        name: value if _is_equal(w[name] for w in workers) else sum(w[name] for w in workers)
        for name, value in workers[0].items()
    }


def _is_equal(values: Iterable[int]) -> bool:
    return len(set(values)) == 1

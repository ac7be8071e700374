"""What a transfer carries: names, shapes and types of all tensors, and the buckets that they travel in."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from rlhf_ray.transfer.errors import ManifestMismatch

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MOST_NAMED = 5
"""Tensors that an error names before it only counts the rest."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor, in the layout of a Hugging Face checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size on the wire."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Manifest:
    """The announcement of a transfer; equal on all trainer ranks, checked by each engine before it changes anything."""

    tensors: tuple[TensorEntry, ...]
    buckets: tuple[tuple[int, int], ...]
    """Bucket b holds `tensors[first:last]`, packed end to end in this order."""

    @classmethod
    def build(cls, tensors: Sequence[TensorEntry], bucket_bytes: int) -> "Manifest":
        """Divide tensors, in their order, into buckets of at most `bucket_bytes`; a larger tensor travels alone."""
        buckets: list[tuple[int, int]] = []
        first, size = 0, 0
        for index, tensor in enumerate(tensors):
            if index > first and size + tensor.bytes > bucket_bytes:
                buckets.append((first, index))
                first, size = index, 0
            size += tensor.bytes
        if tensors:
            buckets.append((first, len(tensors)))
        return cls(tuple(tensors), tuple(buckets))

    @property
    def bytes(self) -> int:
        """Size of the whole transfer on the wire."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bucket_bytes(self) -> list[int]:
        """Size of each bucket on the wire."""
        return [sum(tensor.bytes for tensor in self.bucket(index)) for index in range(len(self.buckets))]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of names, types, shapes and buckets."""
        content = [[t.name, t.dtype, list(t.shape)] for t in self.tensors], list(self.buckets)
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def bucket(self, index: int) -> tuple[TensorEntry, ...]:
        """Return the tensors of one bucket."""
        first, last = self.buckets[index]
        return self.tensors[first:last]

    def check_dtype(self, dtype: str) -> None:
        """Refuse tensors of another type than the engine's.

        Raises:
            ManifestMismatch: naming the first of them.
        """
        for tensor in self.tensors:
            if tensor.dtype != dtype:
                raise ManifestMismatch(
                    f"weight transfer: tensor {tensor.name} comes as {tensor.dtype}, the engine runs in {dtype}; "
                    "the sender must cast to the engine's type"
                )

    def check_shapes(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse names or shapes that are not in the checkpoint that the engine started from.

        What the checkpoint has beyond them may be a tied tensor's second copy, or a buffer: whether all weights came,
        the engine judges by its own parameters when the transfer ends.

        Raises:
            ManifestMismatch: naming what is unknown or of another shape.
        """
        shapes = {tensor.name: tensor.shape for tensor in self.tensors}
        problems = {
            "unknown to the engine": sorted(shapes.keys() - expected.keys()),
            "of another shape": sorted(n for n in shapes.keys() & expected.keys() if shapes[n] != tuple(expected[n])),
        }
        found = [f"{what}: {name_some(names)}" for what, names in problems.items() if names]
        if found:
            raise ManifestMismatch(
                f"weight transfer: the trainer's tensors are not those of the engine's model ({'; '.join(found)}); "
                "trainer and engine must load the same model"
            )


def name_some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    rest = len(names) - MOST_NAMED
    return ", ".join(names[:MOST_NAMED]) + (f" and {rest} more" if rest > 0 else "")

"""A saved state as ranks read it: each part by one rank, which sends the others what is in it.

Storage gives each byte once, whatever the number of ranks: at 72B, weights with moments are 872 GB, which 64 ranks
would otherwise read 64 times. Where as many ranks read as wrote, each reads its own part.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from rlhf_ray.checkpoint.parts import Part, open_tensors
from rlhf_ray.checkpoint.storage import CheckpointError, join
from rlhf_ray.checkpoint.tensors import LazyTensors

COUNTERS = "counters"
"""Integers: optimizer steps taken, ranks that wrote, steps of the optimizer's bias correction."""


def part_name(rank: int) -> str:
    """Return the file that a rank writes."""
    return f"rank_{rank:05d}.safetensors"


class SavedParts:
    """Tensors of a saved state by name; all ranks must ask for the same ones, in the same order.

    Args:
        directory: of the saved state.
        rank: of this process.
        world: number of ranks.
        device: where tensors come, and travel.
        written: what the checkpoint's manifest says of the parts; each is hashed by the rank that reads it.
    """

    def __init__(
        self, directory: str, rank: int, world: int, device: torch.device, written: Sequence[Part] = ()
    ) -> None:
        self.directory = directory
        self._hashes = {part.path: part.sha256 for part in written}
        self._rank, self._world, self._device = rank, world, device
        self._parts: dict[int, LazyTensors] = {}
        """Those that this rank reads, by the rank that wrote them."""
        self._places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        """Reader, writer and shape of each tensor."""
        self.counters: list[int] = []
        """Those of the first part; see `COUNTERS`."""

    @contextmanager
    def open(self) -> Iterator["SavedParts"]:
        """Open the parts that this rank reads, and learn what the others have.

        Raises:
            CheckpointError: a part is missing, on whichever rank; all ranks raise it.
            Damaged: one is not what was written; likewise.
        """
        with ExitStack() as stack:
            if error := self._exchange(self._try(stack, [0] if self._rank == 0 else []))[0]:
                raise error
            counters = self._parts[0][COUNTERS].tolist() if self._rank == 0 else []
            self.counters = self._exchange(counters)[0]
            writers = self.counters[1]
            mine = [writer for writer in range(self._rank, writers, self._world) if writer]
            for error in self._exchange(self._try(stack, mine)):
                if error:
                    raise error
            own = {name: (writer, part.shape(name)) for writer, part in self._parts.items() for name in part}
            for reader, tensors in enumerate(self._exchange(own)):
                self._places |= {name: (reader, *place) for name, place in tensors.items()}
            yield self

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which all ranks know."""
        return self._places[name][2]

    def get(self, name: str) -> Tensor:
        """Return a float32 tensor on the device, from the rank that reads it."""
        reader, writer, shape = self._places[name]
        if reader == self._rank:
            value = self._parts[writer][name].to(self._device)
        else:
            value = torch.empty(shape, device=self._device)
        if self._world > 1:
            torch.distributed.broadcast(value, reader)
        return value

    def own(self) -> LazyTensors | None:
        """Return what a rank of this number wrote; None where there was none."""
        return self._parts.get(self._rank)

    def _try(self, stack: ExitStack, writers: list[int]) -> CheckpointError | None:
        """Open parts; returns why that failed, for the others to hear."""
        try:
            for writer in writers:
                name = part_name(writer)
                opened = open_tensors(join(self.directory, name), self._hashes.get(name))
                self._parts[writer] = stack.enter_context(opened)
        except CheckpointError as error:
            # Without traceback and cause it can travel.
            return type(error)(str(error))
        return None

    def _exchange(self, mine: Any) -> list[Any]:
        if self._world == 1:
            return [mine]
        found: list[Any] = [None] * self._world
        torch.distributed.all_gather_object(found, mine)
        return found

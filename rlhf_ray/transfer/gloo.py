"""Weights over gloo: broadcast on CPU from the sender to the workers of all engines, in chunks that overlap loading."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore, Work

from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.group import SENDER_RANK, TransferGroup
from rlhf_ray.transfer.manifest import TensorEntry
from rlhf_ray.transfer.memory import KeptMemory

CHUNK_BYTES = 8 * 2**20
"""Piece of a bucket that travels as one broadcast: small enough that loading starts early, large enough that the cost
of a call (about 0.1 ms) does not show. A broadcast of each tensor takes twice as long."""

CHUNKS_UNDER_WAY = 3
"""Of a sender; while they travel, the next one is put together."""


class GlooGroup:
    """One member of a gloo transfer group. Creating it waits for all others.

    Args:
        group: the group.
        rank: this member's rank; the sender is 0.
        store: the sender's own store, or a connection to it.

    Raises:
        TransferError: not everybody came within the group's deadline.
    """

    def __init__(self, group: TransferGroup, rank: int, store: TCPStore) -> None:
        self._group = group
        self._store = store
        self._timeout = timedelta(seconds=group.seconds)
        self._memory = KeptMemory()
        members = PrefixStore(f"weights/{group.generation}", store)
        try:
            with _parents_cpus():
                # torch leaves its methods out of the type stubs.
                self._process_group: Any = ProcessGroupGloo(members, rank, group.world_size, self._timeout)
        except RuntimeError as error:
            raise TransferError(
                f"weight transfer: rank {rank} waited {group.seconds:g} s for the {group.world_size} members of "
                f"generation {group.generation}: {error}"
            ) from error

    def send(self, bucket: Sequence[Shaped[Tensor, " items"]]) -> None:
        """Broadcast the flat tensors of a bucket to all workers; returns when their memory may change.

        Raises:
            TransferError: a worker failed or did not take it in time.
        """
        slots = [_Slot() for _ in range(CHUNKS_UNDER_WAY)]
        for number, pieces in enumerate(_cut([tensor.view(torch.uint8) for tensor in bucket])):
            slot = slots[number % len(slots)]
            self._wait(slot.work)
            slot.work = self._broadcast(slot.joined(pieces))
        for slot in slots:
            self._wait(slot.work)

    def receive(self, entries: Sequence[TensorEntry], wire: list[float]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors of a bucket as they arrive; the next ones travel while the caller uses one.

        Seconds spent waiting are appended to `wire`.

        Raises:
            TransferError: the sender failed or was too slow.
        """
        block = self._memory.take(sum(entry.bytes for entry in entries))
        works = deque(self._broadcast(chunk) for chunk in block.split(CHUNK_BYTES))
        arrived = end = 0
        for entry in entries:
            begin, end = end, end + entry.bytes
            before = time.perf_counter()
            while arrived < end:
                self._wait(works.popleft())
                arrived += CHUNK_BYTES
            wire.append(time.perf_counter() - before)
            yield entry.name, block[begin:end].view(getattr(torch, entry.dtype)).view(entry.shape)

    def close(self) -> None:
        """Leave the group."""
        self._process_group.shutdown()

    def _broadcast(self, chunk: UInt8[Tensor, " bytes"]) -> Work:
        work: Work = self._process_group.broadcast(chunk, root=SENDER_RANK)
        return work

    def _wait(self, work: Work | None) -> None:
        if work is None:
            return
        try:
            work.wait(self._timeout)
        except RuntimeError as error:
            raise TransferError(
                f"weight transfer: broadcast in generation {self._group.generation} failed or took more than "
                f"{self._group.seconds:g} s: {error}"
            ) from error


def _cut(tensors: Sequence[UInt8[Tensor, " bytes"]]) -> Iterator[list[UInt8[Tensor, " bytes"]]]:
    """Yield the pieces of each chunk of what the tensors are when they lie one behind the other."""
    pieces: list[Tensor] = []
    room = CHUNK_BYTES
    for tensor in tensors:
        begin = 0
        while begin < tensor.numel():
            pieces.append(tensor[begin : begin + room])
            begin += pieces[-1].numel()
            room -= pieces[-1].numel()
            if room == 0:
                yield pieces
                pieces, room = [], CHUNK_BYTES
    if pieces:
        yield pieces


class _Slot:
    """A chunk on its way: its broadcast, and memory to put it together from several tensors."""

    def __init__(self) -> None:
        self.work: Work | None = None
        self._block: Tensor | None = None

    def joined(self, pieces: Sequence[UInt8[Tensor, " bytes"]]) -> UInt8[Tensor, " bytes"]:
        """Return the pieces as one tensor; a single one stays where it is."""
        if len(pieces) == 1:
            return pieces[0]
        if self._block is None:
            self._block = torch.empty(CHUNK_BYTES, dtype=torch.uint8)
        whole = self._block[: sum(piece.numel() for piece in pieces)]
        return torch.cat(list(pieces), out=whole)


@contextmanager
def _parents_cpus() -> Iterator[None]:
    """Let threads that start here run on all CPUs of the parent process.

    A worker's own thread is bound to the CPU that it computes on. Gloo's threads would inherit that and take turns with
    loading, instead of receiving the next tensors meanwhile.
    """
    own = os.sched_getaffinity(0)
    with suppress(OSError):  # without the parent's CPUs it is slower, not wrong
        others = os.sched_getaffinity(os.getppid()) - own
        os.sched_setaffinity(0, others or own)
    try:
        yield
    finally:
        os.sched_setaffinity(0, own)

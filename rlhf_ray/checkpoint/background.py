"""Files of a checkpoint that a thread writes while its process computes on."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from rlhf_ray.checkpoint.parts import Part, write_tensors

if TYPE_CHECKING:
    import torch


class BackgroundWrite:
    """Writes one file after another, each with its hash; remembers the newest."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._newest: Future[Part] | None = None

    def begin(self, directory: str, name: str, tensors: "Mapping[str, torch.Tensor]") -> None:
        """Begin to write tensors, which nobody may change any more; first the file before ends."""
        self.settle()
        self._newest = self._thread.submit(write_tensors, directory, name, tensors)

    def settle(self) -> None:
        """Wait until nothing is written any more, whatever became of it."""
        if self._newest is not None:
            wait([self._newest])

    def part(self, *, wait: bool) -> Part | None:
        """Return the newest file once it is whole; None before, or, with `wait`, at the earliest when it is.

        Raises:
            CheckpointError: the storage is full, or refuses to be written.
            RuntimeError: nothing was begun.
        """
        if self._newest is None:
            raise RuntimeError("no file of a checkpoint was begun")
        return self._newest.result() if wait or self._newest.done() else None

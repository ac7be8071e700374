"""Device memory that a model gives away for a while: what was in it waits in the machine's memory."""

import gc
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ALIGNMENT = 64
"""Bytes to which each piece of a host copy is rounded up."""


class HostCopy:
    """One flat piece of host memory for storages of a device, made once and used at each sleep.

    On a GPU it is pinned where it lies: torch's own pinned memory rounds each block up to a power of two and keeps it,
    so that a model of 14 GiB would take 27.

    Args:
        pinned: whether to pin it.
        constant: whether the storages never change, so that they are copied once.
    """

    def __init__(self, pinned: bool, constant: bool = False) -> None:
        self._pinned, self._constant = pinned, constant
        self._block = torch.empty(0, dtype=torch.uint8)
        self._storages: list[torch.UntypedStorage] = []
        self._pieces: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes of host memory."""
        return self._block.numel()

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Move the memory behind tensors here; each storage once, however many tensors view it.

        The storages shrink to nothing, and all views into them stay valid: DeepSpeed's own `offload_states` lacks stage
        0, the bfloat16 optimizer of stage 1 and frozen models.
        """
        storages = list(_storages_of(tensors).values())
        if not self._constant or [s._cdata for s in storages] != [s._cdata for s in self._storages]:
            self._storages, self._pieces = storages, self._room_for([s.nbytes() for s in storages])
            for storage, piece in zip(self._storages, self._pieces, strict=True):
                piece.copy_(_as_bytes(storage), non_blocking=True)
            _finish_copies(storages)
        for storage in storages:
            storage.resize_(0)

    def restore(self) -> None:
        """Bring all bytes back to where they were."""
        for storage, piece in zip(self._storages, self._pieces, strict=True):
            storage.resize_(piece.numel())
            _as_bytes(storage).copy_(piece, non_blocking=True)
        _finish_copies(self._storages)

    def _room_for(self, sizes: list[int]) -> list[Tensor]:
        begins, total = [], 0
        for size in sizes:
            begins.append(total)
            total += -(-size // ALIGNMENT) * ALIGNMENT
        if total > self.nbytes:
            self._pieces = []
            if self._pinned:
                _pin(self._block, False)
            self._block = torch.empty(total, dtype=torch.uint8)
            if self._pinned:
                _pin(self._block, True)
        return [self._block[begin : begin + size] for begin, size in zip(begins, sizes, strict=True)]


class DeviceMemory:
    """Memory of a process on its device, which it gives to others and takes again. On CPU nothing happens.

    Args:
        device: of the process.
        tensors: finds all tensors on it.
        constant: finds those among them that never change, such as a frozen model's weights.
    """

    def __init__(
        self,
        device: torch.device,
        tensors: Callable[[], Iterable[Tensor]],
        constant: Callable[[], Iterable[Tensor]] = tuple,
    ) -> None:
        self._on_gpu = device.type == "cuda"
        self._tensors, self._constant = tensors, constant
        self._kept, self._moved = HostCopy(self._on_gpu, constant=True), HostCopy(self._on_gpu)
        self._asleep = False

    def sleep(self) -> None:
        """Clear the device: what is on it waits in host memory."""
        if self._on_gpu and not self._asleep:
            self._kept.take(self._constant())
            self._moved.take(self._tensors())  # without the constant ones, which are empty now
            self._asleep = True
            self.free_cache()

    def wake(self) -> None:
        """Bring back onto the device what `sleep` took away."""
        if self._asleep:
            self._kept.restore()
            self._moved.restore()
            self._asleep = False

    def free_cache(self) -> None:
        """Give back device memory that torch keeps for the next computation."""
        if self._on_gpu:
            torch.cuda.empty_cache()


def tensors_on(device: torch.device) -> list[Tensor]:
    """Find all tensors of this process on a device: its weights, gradients, optimizer state and buffers."""
    gc.collect()
    # `type` and not `isinstance`: the latter would wake lazy objects of other libraries. Weights in 4 bits are of a
    # kind of Parameter.
    kinds = (torch.nn.Parameter, torch.nn.Buffer)
    tensors = [o for o in gc.get_objects() if type(o) is Tensor or issubclass(type(o), kinds)]
    found = [t for t in tensors if t.device == device and t.layout == torch.strided]
    # A gradient that Python never looked at is no Python object yet.
    return found + [t.grad for t in found if t.is_leaf and t.grad is not None]


def weights_of(network: torch.nn.Module) -> list[Tensor]:
    """Return parameters and buffers of a network; of sharded ones (ZeRO-3) the shards."""
    parameters: list[Tensor] = [getattr(parameter, "ds_tensor", parameter) for parameter in network.parameters()]
    return [*parameters, *network.buffers()]


def _storages_of(tensors: Iterable[Tensor]) -> dict[int, torch.UntypedStorage]:
    storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
    return {key: storage for key, storage in storages.items() if storage.nbytes() > 0}


def _as_bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _finish_copies(storages: list[torch.UntypedStorage]) -> None:
    for device in {storage.device for storage in storages if storage.device.type == "cuda"}:
        torch.cuda.synchronize(device)


def _pin(block: Tensor, pinned: bool) -> None:
    """Let the GPU copy from and to host memory by itself, or no longer."""
    if block.numel():
        cuda = torch.cuda.cudart()
        address = block.data_ptr()
        code = cuda.cudaHostRegister(address, block.numel(), 0) if pinned else cuda.cudaHostUnregister(address)
        torch.cuda.check_error(int(code))

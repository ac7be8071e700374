"""Memory that is kept between transfers."""

import torch
from jaxtyping import UInt8
from torch import Tensor


class KeptMemory:
    """CPU memory that its users take turns with: the first touch of new memory takes longer than a copy."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._users_when_free = self._users()

    def take(self, size: int) -> UInt8[Tensor, " bytes"]:
        """Return memory of this size: new, where somebody still holds tensors in the old one, which must stay."""
        if self._block.numel() < size or self._users() > self._users_when_free:
            self._block = torch.empty(size, dtype=torch.uint8)
        return self._block[:size]

    def _users(self) -> int:
        """Count the tensors that share the block's memory, it and passing references included."""
        count: int = torch._C._storage_Use_Count(self._block.untyped_storage()._cdata)
        return count

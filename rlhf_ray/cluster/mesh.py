"""The grid of a role's ranks: who works on which slice of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Mesh:
    """Ranks as data x tensor, the tensor index running fastest."""

    data: int
    tensor: int = 1

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.data * self.tensor

    def data_rank(self, rank: int) -> int:
        """Return which slice of the batch a rank works on."""
        return rank // self.tensor

    def spread(self, per_data_rank: Sequence[Any]) -> list[Any]:
        """Give each rank the item of its data rank.

        Raises:
            ValueError: the number of items is not that of the data ranks.
        """
        if len(per_data_rank) != self.data:
            raise ValueError(f"{len(per_data_rank)} slices for {self.data} data ranks")
        return [per_data_rank[self.data_rank(rank)] for rank in range(self.size)]

    def collect(self, per_rank: Sequence[Any]) -> list[Any]:
        """Return the first rank's item of each data rank."""
        return list(per_rank[:: self.tensor])

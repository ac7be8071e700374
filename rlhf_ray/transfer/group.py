"""Who takes part in a transfer. Membership never changes: an engine that comes or goes makes a new generation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Transport = Literal["gloo", "nccl", "ipc"]

SENDER_RANK = 0


@dataclass(frozen=True, slots=True)
class TransferGroup:
    """One sender and the workers of all engines, who meet at the sender's store."""

    transport: Transport
    generation: int
    """Rises by one whenever the members change."""
    host: str
    port: int
    """Of the store."""
    engine_workers: tuple[int, ...]
    """Workers (tensor-parallel ranks) of each engine, by engine index."""
    seconds: float
    """Deadline of the rendezvous and of one wait within a transfer."""
    manifest_digest: str
    """Of what will travel; engines refuse anything else."""
    largest_bucket: int
    """Bytes of the largest bucket that will travel."""
    key: bytes = field(repr=False)
    """Secret of this generation, with which payloads in the store are signed."""
    nccl_port: int = 0
    """Where NCCL makes a store of its own."""

    @property
    def world_size(self) -> int:
        """The sender and all workers."""
        return 1 + sum(self.engine_workers)

    def rank_offset(self, engine: int) -> int:
        """Return the rank of the first worker of an engine in the group."""
        return SENDER_RANK + 1 + sum(self.engine_workers[:engine])

    def to_plain(self) -> dict[str, Any]:
        """Return values that JSON and MessagePack carry, without the key, which workers do not need."""
        return {**asdict(self), "engine_workers": list(self.engine_workers), "key": ""}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> "TransferGroup":
        """Read what `to_plain` wrote, without the key."""
        return cls(**{**plain, "engine_workers": tuple(plain["engine_workers"]), "key": b""})


def check_engine_workers(engine_workers: Sequence[int]) -> tuple[int, ...]:
    """Return the workers of each engine as a tuple.

    Raises:
        ValueError: there is no engine, or one without a worker.
    """
    if not engine_workers or min(engine_workers) < 1:
        raise ValueError(f"a transfer group needs engines of at least one worker each, got {list(engine_workers)}")
    return tuple(engine_workers)

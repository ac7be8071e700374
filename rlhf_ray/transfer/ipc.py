"""Weights through shared GPU memory: each sending rank exports a buffer, engines on the same GPUs copy from it."""

import base64
import hmac
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed
from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import _get_default_store
from torch.multiprocessing.reductions import reduce_tensor

from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.group import SENDER_RANK, TransferGroup
from rlhf_ray.transfer.meeting import wait_for_keys, why_ended


class Mailbox:
    """Passes buffer handles from sender to engines, and receipts back, through the group's store.

    Handles are pickled, as vLLM asks, and the store is open to the network: so each is signed with the group's key.
    Transfers are numbered from 0 within a group, the same on both sides.
    """

    def __init__(self, store: TCPStore, group: TransferGroup) -> None:
        self._store = store
        self._group = group

    def post(self, transfer: int, bucket: int, handles: dict[str, Any]) -> None:
        """Offer a bucket to all engines: the export of each GPU's buffer, by the GPU's UUID."""
        payload = base64.b64encode(pickle.dumps(handles))
        self._store.set(self._name(transfer, bucket, "handles"), f"{self._sign(payload)} {payload.decode()}")

    def take(self, transfer: int, bucket: int) -> str:
        """Wait for a bucket's handles; returns them pickled, in base64.

        Raises:
            TransferError: they did not come in time, or somebody else sent them.
        """
        signature, payload = self._wait(self._name(transfer, bucket, "handles")).decode().split(" ")
        if not hmac.compare_digest(signature, self._sign(payload.encode())):
            raise TransferError("weight transfer: buffer handles with a wrong signature; they are not the sender's")
        return payload

    def acknowledge(self, transfer: int, bucket: int, engine: int) -> None:
        """Tell the sender that an engine has copied the bucket."""
        self._store.set(self._name(transfer, bucket, f"engine {engine}"), "copied")

    def wait_for_engines(self, transfer: int, bucket: int) -> None:
        """Wait until all engines have copied the bucket.

        Raises:
            TransferError: one did not in time.
        """
        for engine in range(len(self._group.engine_workers)):
            self._wait(self._name(transfer, bucket, f"engine {engine}"))

    def _name(self, transfer: int, bucket: int, what: str) -> str:
        return f"{self._group.generation}/{transfer}/{bucket}/{what}"

    def _sign(self, payload: bytes) -> str:
        return hmac.new(self._group.key, payload, "sha256").hexdigest()

    def why_ended(self) -> str | None:
        """Return why somebody broke the transfer off; None where nobody did."""
        return why_ended(self._group, self._store)

    def _wait(self, name: str) -> bytes:
        wait_for_keys(self._store, [name], self._group.seconds, self.why_ended)
        return self._store.get(name)


class RankGate:
    """Gate that keeps a trainer's ranks in step while engines copy from all of them; only the sender hears from these.

    They wait on the CPU: a collective would spin on the GPU that the engine on it computes with, and could not be
    called back where the engine dies.

    Args:
        rank: this trainer rank.
        world: number of trainer ranks.
        store: of theirs; not used by a single rank.
        seconds: deadline of each wait.
    """

    def __init__(self, rank: int, world: int, store: Store, seconds: float) -> None:
        self._rank, self._others = rank, [other for other in range(world) if other != SENDER_RANK]
        self._store, self._seconds = PrefixStore("ipc", store), seconds
        self._bucket = -1

    @classmethod
    def of_process_group(cls, seconds: float) -> "RankGate":
        """Return the gate of all ranks of this process's group, at the store by which they met."""
        if _ranks() == 1:
            return cls(SENDER_RANK, 1, distributed.HashStore(), seconds)
        return cls(distributed.get_rank(), _ranks(), _get_default_store(), seconds)

    def begin(self) -> None:
        """Go on to the next bucket; on all ranks."""
        self._bucket += 1

    def say_filled(self) -> None:
        """Say that this rank's buffer holds the bucket; not on the sender."""
        self._store.set(self._name(self._rank, "filled"), "yes")

    def wait_for_ranks(self, why_ended: Callable[[], str | None]) -> None:
        """Wait on the sender until the other ranks' buffers hold the bucket.

        Raises:
            TransferError: one of them did not come in time, or the transfer was broken off.
        """
        names = [self._name(rank, "filled") for rank in self._others]
        wait_for_keys(self._store, names, self._seconds, why_ended)
        for name in names:
            self._store.delete_key(name)

    def open(self, failure: str = "") -> None:
        """Let the other ranks go on, or fail as the sender did; on the sender."""
        for rank in self._others:
            self._store.set(self._name(rank, "next"), failure)

    def wait(self) -> None:
        """Wait until the sender heard that the bucket was copied; on other ranks.

        Raises:
            TransferError: the sender failed, or does not answer.
        """
        name = self._name(self._rank, "next")
        # The sender first waits as long itself, twice: for the ranks, and for the engines.
        wait_for_keys(self._store, [name], 3 * self._seconds, lambda: None)
        failure = self._store.get(name).decode()
        self._store.delete_key(name)
        if failure:
            raise TransferError(failure)

    def _name(self, rank: int, what: str) -> str:
        return f"{self._bucket}/{rank}/{what}"


class IpcExport:
    """One rank's staging buffer, exported to processes on the same GPU for the length of one transfer.

    Args:
        size: bytes of the largest bucket.
        device: this rank's GPU.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self._buffer = torch.empty(size, dtype=torch.uint8, device=device)
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        _, arguments = reduce_tensor(self._buffer)
        self.handles = _merged_over_ranks({uuid: arguments})

    def fill(self, bucket: Sequence[Shaped[Tensor, " items"]]) -> None:
        """Pack the flat tensors of a bucket end to end; returns when they are there for others to read."""
        end = 0
        for tensor in bucket:
            piece = tensor.view(torch.uint8)
            begin, end = end, end + len(piece)
            self._buffer[begin:end].copy_(piece)
        torch.cuda.current_stream(self._buffer.device).synchronize()

    @staticmethod
    def release() -> None:
        """Let CUDA take back what engines have let go of."""
        torch.cuda.ipc_collect()
        torch.cuda.empty_cache()  # of torch, which keeps the buffer for its own use otherwise


def _ranks() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _merged_over_ranks(handles: dict[str, Any]) -> dict[str, Any]:
    if _ranks() == 1:
        return handles
    gathered: Sequence[dict[str, Any]] = [{} for _ in range(_ranks())]
    distributed.all_gather_object(gathered, handles)
    return {uuid: arguments for rank in gathered for uuid, arguments in rank.items()}

"""The trainer's end of a weight transfer: one object on each rank, rank 0 sends."""

import secrets
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

import torch
from jaxtyping import Shaped
from torch import Tensor

from rlhf_ray.cluster.endpoint import free_port
from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.fingerprint import bit_sum, column_sum
from rlhf_ray.transfer.gloo import GlooGroup
from rlhf_ray.transfer.group import SENDER_RANK, TransferGroup, Transport, check_engine_workers
from rlhf_ray.transfer.ipc import IpcExport, Mailbox, RankGate
from rlhf_ray.transfer.manifest import Manifest
from rlhf_ray.transfer.meeting import announce, meet, open_store
from rlhf_ray.transfer.source import DeepSpeedWeightSource

if TYPE_CHECKING:
    from torch.distributed import TCPStore
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator


class SenderTransport(Protocol):
    """Way by which buckets leave the trainer."""

    every_rank: bool
    """Whether all trainer ranks take part in sending, or the sender alone."""

    def join(self, group: TransferGroup, store: "TCPStore") -> None:
        """Make the connections to the engines' workers, once all engines are there."""

    def start(self, device: torch.device) -> None:
        """Make ready for a transfer of tensors on a device; all ranks that take part together."""

    def send(self, bucket: list[Shaped[Tensor, " items"]], index: int) -> None:
        """Send the flat tensors of one bucket; returns when their memory may change.

        Runs in a thread of its own, so that the next bucket is gathered meanwhile. The list is this call's to empty:
        what was packed need not stay in memory.
        """

    def finish(self) -> None:
        """End a transfer all of whose buckets were sent."""

    def close(self) -> None:
        """Leave the group."""


class WeightSender:
    """Sends the weights of a source to the engines of a transfer group.

    On the sender (rank 0): `open`, then `join` while each engine connects, then `send` for each version while each
    engine receives. Other ranks call `send` alone, which keeps them in the collective gathers. The next bucket is
    gathered while one is on the wire. A transfer that failed, or a change of members, needs a new `open` with a higher
    generation.

    Args:
        source: this rank's weights.
        transport: how they travel.
        rank: this trainer rank.
        seconds: deadline of the rendezvous and of each wait within a transfer.
    """

    def __init__(self, source: DeepSpeedWeightSource, transport: Transport, *, rank: int, seconds: float) -> None:
        self._source = source
        self._transport_name: Transport = transport
        self._rank = rank
        self._seconds = seconds
        self._group: TransferGroup | None = None
        self._store: TCPStore | None = None
        self._transfers = 0
        """Of the present group."""
        self._stream: torch.cuda.Stream | None = None
        self.sent: dict[str, int] = {}
        """Bit sum of each tensor of the last transfer, by name; on ranks that send."""
        largest_bucket = max(source.manifest.bucket_bytes, default=0)
        self._transport: SenderTransport = _TRANSPORTS[transport](rank, largest_bucket, seconds)

    @property
    def manifest(self) -> Manifest:
        """Return the names, types and shapes of what every transfer carries."""
        return self._source.manifest

    def open(self, generation: int, engine_workers: Sequence[int], host: str) -> TransferGroup:
        """Leave the old group, if any, and make a new one; on the sender only.

        Args:
            generation: number of the group; rises with each.
            engine_workers: tensor-parallel size of each engine.
            host: address of this machine that all engines can reach.
        """
        workers = check_engine_workers(engine_workers)
        if self._group is not None and generation <= self._group.generation:
            raise ValueError(f"generation {generation} does not follow {self._group.generation}")
        self.close()
        self._transfers = 0
        manifest = self._source.manifest
        self._store = open_store(host, self._seconds)
        self._group = TransferGroup(
            transport=self._transport_name,
            generation=generation,
            host=host,
            port=self._store.port,
            nccl_port=free_port(host) if self._transport_name == "nccl" else 0,
            engine_workers=workers,
            seconds=self._seconds,
            manifest_digest=manifest.digest,
            largest_bucket=max(manifest.bucket_bytes, default=0),
            key=secrets.token_bytes(32),
        )
        return self._group

    def join(self) -> None:
        """Complete the rendezvous, while the engines connect; on the sender only.

        Raises:
            TransferError: not everybody came in time, or it was called off.
        """
        if self._group is None or self._store is None:
            raise TransferError("weight transfer: open a group before joining it")
        meet(self._group, self._store)
        self._transport.join(self._group, self._store)

    def send(self) -> dict[str, float]:
        """Gather and send all weights, while the engines receive; on all ranks.

        Returns:
            Seconds in which this rank had buckets to `gather`, and in which it had some to `send`; they overlap.

        Raises:
            TransferError: an engine failed or was too slow; the group cannot be used any more.
        """
        takes_part = self._transport.every_rank or self._rank == SENDER_RANK
        device = self._source.device
        gather, sending = 0.0, list[Future[float]]()
        buckets = self._source.buckets(keep=takes_part)
        # Leaving the block waits for the bucket on the wire, also after an error.
        with ThreadPoolExecutor(1, "weights") as wire:
            for index in range(len(self.manifest.buckets)):
                started = time.perf_counter()
                bucket = next(buckets)
                _synchronize(device)
                gather += time.perf_counter() - started
                if not takes_part:
                    continue
                if index == 0:
                    self._begin(device)
                else:
                    sending[-1].result()  # memory holds one bucket on the wire and the next one
                sending.append(wire.submit(self._send, list(bucket), index, device))
                self._sum(bucket, index)
                del bucket
        send = sum(future.result() for future in sending)
        if takes_part:
            self._transport.finish()
        self._transfers += 1
        return {"gather": gather, "send": send}

    def _begin(self, device: torch.device) -> None:
        """Tell engines that weights come, which until then write on."""
        self._transport.start(device)
        if self._group is not None and self._store is not None:
            announce(self._group, self._store, self._transfers)

    def _send(self, bucket: list[Shaped[Tensor, " items"]], index: int, device: torch.device) -> float:
        """Send a bucket in the thread of the wire; returns the seconds that it took."""
        started = time.perf_counter()
        # On a stream beside that of the gathering, which would else wait for the wire.
        if device.type == "cuda" and self._stream is None:
            self._stream = torch.cuda.Stream(device)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self._transport.send(bucket, index)
        return time.perf_counter() - started

    def _sum(self, bucket: Sequence[Shaped[Tensor, " items"]], index: int) -> None:
        # Engines that gloo reaches are on CPU.
        summed = column_sum if self._transport_name == "gloo" else bit_sum
        for entry, tensor in zip(self._source.manifest.bucket(index), bucket, strict=True):
            self.sent[entry.name] = summed(tensor.view(entry.shape), tensor.dtype)

    def close(self) -> None:
        """Leave the group."""
        self._transport.close()
        self._store = None


def _synchronize(device: torch.device) -> None:
    """Wait until a bucket is gathered; not for the one before it, which may be on the wire on a stream of its own.

    Two groups have collectives in flight on this GPU then. They cannot wait for each other in a circle: engines wait
    for this rank alone, and the other trainers are in one group only.
    """
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


class _GlooSender:
    """Broadcast from CPU memory."""

    every_rank = False

    def __init__(self, rank: int, largest_bucket: int, seconds: float) -> None:
        self._members: GlooGroup | None = None

    def join(self, group: TransferGroup, store: "TCPStore") -> None:
        self._members = GlooGroup(group, SENDER_RANK, store)

    def start(self, device: torch.device) -> None:
        """Do nothing: each bucket brings its memory."""

    def send(self, bucket: list[Shaped[Tensor, " items"]], index: int) -> None:
        if self._members is None:
            raise TransferError("weight transfer: join the group before sending")
        self._members.send([tensor.cpu() for tensor in bucket])

    def finish(self) -> None:
        """Do nothing: all is sent."""

    def close(self) -> None:
        if self._members is not None:
            self._members.close()
        self._members = None


class _NcclSender:
    """Broadcast from GPU memory; each bucket is one of the packed chunks of vLLM's protocol."""

    every_rank = False

    def __init__(self, rank: int, largest_bucket: int, seconds: float) -> None:
        self._communicator: PyNcclCommunicator | None = None

    def join(self, group: TransferGroup, store: "TCPStore") -> None:
        from rlhf_ray.transfer.vllm_adapter import open_nccl_sender

        self._communicator = open_nccl_sender(group)

    def start(self, device: torch.device) -> None:
        """Do nothing: each bucket brings its memory."""

    def send(self, bucket: list[Shaped[Tensor, " items"]], index: int) -> None:
        if self._communicator is None:
            raise TransferError("weight transfer: join the group before sending")
        packed = torch.cat([tensor.view(torch.uint8) for tensor in bucket])
        # Named, for vLLM would move this thread to a stream of its own, for good.
        stream = torch.cuda.current_stream(packed.device)
        # What is let go of is used for the next bucket at once, on another stream.
        stream.synchronize()
        bucket.clear()
        self._communicator.broadcast(packed, src=SENDER_RANK, stream=stream)
        stream.synchronize()

    def finish(self) -> None:
        """Do nothing: all is sent."""

    def close(self) -> None:
        if self._communicator is not None:
            self._communicator.destroy()
            self._communicator = None


class _IpcSender:
    """Shared GPU memory: each trainer rank exports the buffer on its GPU, rank 0 tells the engines."""

    every_rank = True

    def __init__(self, rank: int, largest_bucket: int, seconds: float) -> None:
        self._is_sender = rank == SENDER_RANK
        self._mailbox: Mailbox | None = None
        self._largest_bucket = largest_bucket
        self._seconds = seconds
        self._export: IpcExport | None = None
        self._gate: RankGate | None = None
        self._transfer = 0

    def join(self, group: TransferGroup, store: "TCPStore") -> None:
        self._transfer = 0
        self._mailbox = Mailbox(store, group)

    def start(self, device: torch.device) -> None:
        """Offer this rank's buffer, beside the thread that sends: gathering uses the same process group."""
        self._gate = self._gate or RankGate.of_process_group(self._seconds)
        self._export = IpcExport(self._largest_bucket, device)

    def send(self, bucket: list[Shaped[Tensor, " items"]], index: int) -> None:
        gate, export = self._gate, self._export
        if gate is None or export is None:
            raise TransferError("weight transfer: a transfer begins before its first bucket is sent")
        gate.begin()
        try:
            export.fill(bucket)
            bucket.clear()
            if not self._is_sender:
                gate.say_filled()
                gate.wait()
                return
            self._offer(gate, export, index)
        except BaseException as error:
            # The next transfer begins anew on all ranks.
            self._export = None
            if self._is_sender:
                gate.open(str(error) or type(error).__name__)
            raise
        gate.open()

    def _offer(self, gate: RankGate, export: IpcExport, index: int) -> None:
        """Let all engines copy the bucket from all ranks."""
        if self._mailbox is None:
            raise TransferError("weight transfer: join the group before sending")
        gate.wait_for_ranks(self._mailbox.why_ended)
        self._mailbox.post(self._transfer, index, export.handles)
        self._mailbox.wait_for_engines(self._transfer, index)

    def finish(self) -> None:
        self._export = None
        self._transfer += 1
        IpcExport.release()

    def close(self) -> None:
        self._mailbox = self._export = None


_TRANSPORTS: dict[Transport, type[_GlooSender] | type[_NcclSender] | type[_IpcSender]] = {
    "gloo": _GlooSender,
    "nccl": _NcclSender,
    "ipc": _IpcSender,
}

"""All contact with vLLM's weight-transfer interface, whose shape changes between its versions (this is 0.32).

Worker side: back ends for gloo, NCCL and CUDA IPC that share one lifecycle. Engine side: `EngineLink`, which leads an
`AsyncLLM` through connect, update and disconnect. Sender side: the NCCL communicator.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdateRequest,
)
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_common import trainer_init
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import _place_kernel_tensors, get_layerwise_info
from vllm.platforms import current_platform

from rlhf_ray.transfer.cpu_reload import CpuReload
from rlhf_ray.transfer.cpu_weights import stale_layers, stored_columns
from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.fingerprint import bit_sum, column_sum
from rlhf_ray.transfer.gloo import GlooGroup
from rlhf_ray.transfer.group import TransferGroup
from rlhf_ray.transfer.ipc import Mailbox
from rlhf_ray.transfer.manifest import Manifest, TensorEntry
from rlhf_ray.transfer.meeting import join_store, meet, wait_for_transfer
from rlhf_ray.transfer.verification import HeldWeights

if TYPE_CHECKING:
    from torch.distributed import TCPStore
    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
    from vllm.v1.engine.async_llm import AsyncLLM


def register_backends(backends: Mapping[str, str]) -> None:
    """Make worker back ends known to vLLM by name; names that it knows already stay."""
    for name, class_name in backends.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, __name__, class_name)


FILE_SCHEME = "file://"


class TransferWorkerExtension:
    """Methods that our engines add to vLLM's workers."""

    def rendezvous_file(self) -> str | None:
        """Return the file by which the engine's workers met, which stays; None where they met over the network."""
        method: str = self.distributed_init_method  # type: ignore[attr-defined]
        return method.removeprefix(FILE_SCHEME) if method.startswith(FILE_SCHEME) else None

    def transfer_timings(self) -> dict[str, float]:
        """Return the seconds that the last update of this worker spent on the wire and in loading."""
        return self.weight_transfer_engine.timings  # type: ignore[attr-defined]

    def held_weights(self) -> dict[str, Any]:
        """Return what this worker holds since its last update, see `verification.HeldWeights`."""
        return self.weight_transfer_engine.held_weights()  # type: ignore[attr-defined]

    def abandon_weight_update(self) -> None:
        """Forget an update that broke off, so that the next one can start."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()  # type: ignore[attr-defined]


class _Lifecycle:
    """Start and end of an update, the same for all transports; mixed into vLLM's back ends."""

    model: Any
    model_config: Any
    timings: dict[str, float]
    summed: Callable[[Tensor, torch.dtype], int] = staticmethod(bit_sum)
    """How a weight's bits are summed, the same on the sender."""

    def start_weight_update(self) -> None:
        """Put layers that a broken update left half-loaded back in place, then prepare all for loading."""
        started = time.perf_counter()
        _restore_half_loaded(self.model)
        self._expected = {name for name, _ in self.model.named_parameters()}
        self._loaded: set[str] = set()
        self._received: dict[str, int] = {}
        super().start_weight_update()  # type: ignore[misc]
        self.timings = {"wire": 0.0, "load": time.perf_counter() - started}

    def finish_weight_update(self) -> None:
        """Refuse an incomplete update; else run vLLM's own end of it and repack the output layer where that is left.

        Raises:
            TransferError: weights of the model did not come.
        """
        started = time.perf_counter()
        missing = sorted(self._expected - self._loaded)
        if missing and self.model_config.quantization is None:
            raise TransferError(f"weight transfer: {len(missing)} weights of the engine did not come: {missing[:5]}")
        super().finish_weight_update()  # type: ignore[misc]
        _renew_tied_heads(self.model)
        self.timings["load"] += time.perf_counter() - started

    def receive_weights(self, update_info: Any) -> None:
        """Receive and load one bucket, noting which weights came and how long loading took."""
        started = time.perf_counter()
        load = self.model.load_weights
        loading = [0.0]

        def recorded(weights: Iterable[tuple[str, Tensor]]) -> set[str]:
            before = time.perf_counter()
            names = load(self._noted(weights))
            loading.append(time.perf_counter() - before)
            self._loaded.update(names)
            return names

        self.model.load_weights = recorded
        try:
            waited = super().receive_weights(update_info) or 0.0  # type: ignore[misc]
        finally:
            del self.model.load_weights
        load_seconds = sum(loading) - waited
        self.timings["load"] += load_seconds
        self.timings["wire"] += time.perf_counter() - started - load_seconds

    def _noted(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, weight in weights:
            self._received[name] = self.summed(weight, weight.dtype)
            yield name, weight

    def held_weights(self) -> dict[str, Any]:
        """Return the bit sums of what came and of what stands in the model, and the layers that compute otherwise."""
        return {"received": self._received, "stored": self._stored(), "stale": self._stale()}

    def _stored(self) -> dict[str, int]:
        dtype = self.model_config.dtype
        return {name: self.summed(p, dtype) for name, p in self.model.named_parameters() if p.is_floating_point()}

    def _stale(self) -> list[str]:
        return []


def _restore_half_loaded(model: nn.Module) -> None:
    """Undo `initialize_layerwise_reload` on layers that an update did not complete.

    vLLM would skip such layers at the next start, keep the old update's tensors queued and mix them with new ones.
    """
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load() and info.kernel_tensors is not None:
            _place_kernel_tensors(layer, info)
            info.reset()


def _renew_tied_heads(model: nn.Module) -> None:
    """Let a tied output layer compute with what its embedding was packed into.

    On CPU a layer computes with a packed copy of its weight. A reload renews the embedding and its copy but never
    visits a tied output layer, whose own copy would stay old: every stored weight right, every token wrong.
    """
    if not current_platform.is_cpu():
        return
    for head in model.modules():
        if isinstance(head, ParallelLMHead):
            embedding = next((m for m in model.modules() if m is not head and _shares_weight(m, head)), None)
            if embedding is not None:
                head.cpu_linear = embedding.cpu_linear


def _shares_weight(module: nn.Module, head: nn.Module) -> bool:
    return getattr(module, "weight", None) is head.weight


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """A transfer group as plain values, and where this engine's workers stand in it."""

    group: dict[str, Any]
    rank_offset: int


@dataclass
class BucketInfo(WeightTransferUpdateInfo):
    """Tensors of one bucket."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class _GlooReceiver(WeightTransferEngine[GlooInitInfo, BucketInfo]):
    """The part of the gloo back end that differs from vLLM's own ones."""

    init_info_cls = GlooInitInfo
    update_info_cls = BucketInfo
    _members: GlooGroup | None = None
    _reload: CpuReload | None = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        group = TransferGroup.from_plain(init_info.group)
        rank = init_info.rank_offset + self.parallel_config.rank
        self._members = GlooGroup(group, rank, join_store(group))

    def start_weight_update(self) -> None:
        if CpuReload.serves(self.model):
            self._reload = self._reload or CpuReload(self.model)
            self._reload.start()
        else:
            initialize_layerwise_reload(self.model)

    def finish_weight_update(self) -> None:
        if self._reload is not None:
            self._reload.finish()
        else:
            finalize_layerwise_reload(self.model, self.model_config)

    def receive_weights(self, update_info: BucketInfo) -> float:  # type: ignore[override]
        """Load a bucket while it arrives; returns the seconds spent waiting for it."""
        if self._members is None:
            raise TransferError("weight transfer: this worker is in no transfer group; connect it first")
        entries = [
            TensorEntry(name, dtype, tuple(shape))
            for name, dtype, shape in zip(update_info.names, update_info.dtype_names, update_info.shapes, strict=True)
        ]
        waits: list[float] = []
        model: Any = self.model
        model.load_weights(self._members.receive(entries, waits))
        return sum(waits)

    def shutdown(self) -> None:
        if self._members is not None:
            self._members.close()
            self._members = None


class GlooWeightTransferEngine(_Lifecycle, _GlooReceiver):  # type: ignore[misc]
    """Back end of our own for CPU workers."""

    summed = staticmethod(column_sum)

    def _stored(self) -> dict[str, int]:
        return stored_columns(self.model, self.model_config.dtype)

    def _stale(self) -> list[str]:
        return stale_layers(self.model)


class NcclWeightTransferEngine(_Lifecycle, NCCLWeightTransferEngine):
    """vLLM's NCCL back end with our start and end of an update."""


class IpcWeightTransferEngine(_Lifecycle, IPCWeightTransferEngine):
    """vLLM's CUDA IPC back end with our start and end of an update."""


class EngineLink:
    """An engine's membership in one transfer group.

    Args:
        llm: the engine.
        group: the group, as the sender opened it.
        engine: index of this engine in the group.
    """

    def __init__(self, llm: "AsyncLLM", group: TransferGroup, engine: int) -> None:
        self._llm = llm
        self._group = group
        self._engine = engine
        self._store: TCPStore | None = None
        self._mailbox: Mailbox | None = None
        self._transfer = 0

    async def open(self) -> None:
        """Meet the sender and all other engines, then let the workers join the group."""
        store = self._store = await asyncio.to_thread(join_store, self._group)
        await asyncio.to_thread(meet, self._group, store)
        if self._group.transport == "ipc":
            self._mailbox = Mailbox(store, self._group)
        await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(self._init_info()))

    def _init_info(self) -> dict[str, Any]:
        group = self._group
        if group.transport == "ipc":
            return {"packed": True}
        offset = group.rank_offset(self._engine)
        if group.transport == "gloo":
            return {"group": group.to_plain(), "rank_offset": offset}
        return {
            "master_address": group.host,
            "master_port": group.nccl_port,
            "rank_offset": offset,
            "world_size": group.world_size,
            "packed": True,
            "packed_buffer_size_bytes": group.largest_bucket,
        }

    async def announced(self) -> None:
        """Wait until the sender has gathered the first bucket of the next update; until then nothing changes here."""
        if self._store is None:
            raise TransferError("weight transfer: open a link before waiting on it")
        await asyncio.to_thread(wait_for_transfer, self._group, self._store, self._transfer)

    async def receive(self, manifest: Manifest, version: int) -> None:
        """Take one complete update. After an error the engine's weights are undefined."""
        await self._llm.start_weight_update()
        for bucket in range(len(manifest.buckets)):
            await self._update(manifest.bucket(bucket), bucket)
        self._transfer += 1
        await self._llm.finish_weight_update(str(version))

    async def timings(self) -> dict[str, float]:
        """Return the seconds of the last update on the `wire` and for `load`, of the slowest worker."""
        timings = await self._llm.collective_rpc("transfer_timings")
        return {part: max(worker[part] for worker in timings) for part in ("wire", "load")}

    async def _update(self, entries: tuple[TensorEntry, ...], bucket: int) -> None:
        info: dict[str, Any] = {
            "names": [entry.name for entry in entries],
            "dtype_names": [entry.dtype for entry in entries],
            "shapes": [list(entry.shape) for entry in entries],
        }
        if self._mailbox is None:
            await self._llm.update_weights(WeightTransferUpdateRequest(info))
            return
        info["ipc_handles_pickled"] = await asyncio.to_thread(self._mailbox.take, self._transfer, bucket)
        info["tensor_sizes"] = [entry.bytes for entry in entries]
        await self._llm.update_weights(WeightTransferUpdateRequest(info))
        await asyncio.to_thread(self._mailbox.acknowledge, self._transfer, bucket, self._engine)

    async def held_weights(self) -> HeldWeights:
        """Ask the workers what they hold."""
        workers = await self._llm.collective_rpc("held_weights")
        return HeldWeights(**{part: [worker[part] for worker in workers] for part in ("received", "stored", "stale")})

    async def abandon(self) -> None:
        """Make the workers ready for a new update after one that broke off."""
        await self._llm.collective_rpc("abandon_weight_update")

    async def close(self) -> None:
        """Leave the group."""
        await self._llm.shutdown_weight_transfer_engine()


def open_nccl_sender(group: TransferGroup) -> "PyNcclCommunicator":
    """Join a group as its sender, on the current CUDA device; waits for the workers."""
    # vLLM moves this thread to a stream of its own, for good: the trainer's comes back with the block's end.
    with torch.cuda.stream(torch.cuda.current_stream()):
        return trainer_init(
            {"master_address": group.host, "master_port": group.nccl_port, "world_size": group.world_size}
        )

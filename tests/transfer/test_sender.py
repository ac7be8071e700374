"""What the sending ends do to the trainer's process; CUDA and vLLM's communicator are stood in for."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_ray.transfer import vllm_adapter
from rlhf_ray.transfer.group import TransferGroup, Transport
from rlhf_ray.transfer.ipc import IpcExport
from rlhf_ray.transfer.sender import WeightSender, _IpcSender, _NcclSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource


def sender(transport: Transport, rank: int) -> WeightSender:
    return WeightSender(DeepSpeedWeightSource(nn.Linear(2, 2), "float32", 64), transport, rank=rank, seconds=1.0)


class Watched(DeepSpeedWeightSource):
    """A source that says which bucket it gathered last."""

    def __init__(self, module: nn.Module, bucket_bytes: int) -> None:
        super().__init__(module, "float32", bucket_bytes)
        self.gathered = [Event() for _ in self.manifest.buckets]

    def buckets(self, keep: bool) -> Iterator[list[torch.Tensor]]:
        for gathered, bucket in zip(self.gathered, super().buckets(keep), strict=True):
            gathered.set()
            yield bucket


def test_the_next_bucket_is_gathered_while_one_is_on_the_wire() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    source = Watched(network, 32)
    count = len(source.manifest.buckets)
    assert count > 2
    one = WeightSender(source, "gloo", rank=0, seconds=1.0)
    sent: list[bytes] = []

    class Wire:
        """A wire on which a bucket stays until the next one is gathered; one at a time."""

        every_rank = False

        def start(self, device: torch.device) -> None: ...

        def send(self, bucket: list[torch.Tensor], index: int) -> None:
            assert index == len(sent)
            assert index + 1 == count or source.gathered[index + 1].wait(10), "gathered only when the wire is free"
            assert index + 2 >= count or not source.gathered[index + 2].is_set(), "more than two buckets in memory"
            sent.append(b"".join(tensor.detach().numpy().tobytes() for tensor in bucket))

        def finish(self) -> None:
            assert len(sent) == count

        def close(self) -> None: ...

    one._transport = Wire()
    assert one.send().keys() == {"gather", "send"}
    assert b"".join(sent) == b"".join(value.detach().numpy().tobytes() for value in network.parameters())


class Stream:
    """A CUDA stream that says when it was waited for."""

    waited = False

    def synchronize(self) -> None:
        self.waited = True


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> list[Stream]:
    """Streams that were current, the trainer's first."""
    used = [Stream()]

    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before = used[-1]
        used.append(chosen)
        yield
        used.append(before)

    monkeypatch.setattr(torch.cuda, "current_stream", lambda *_: used[-1])
    monkeypatch.setattr(torch.cuda, "stream", stream)
    return used


def test_every_rank_leaves_the_group() -> None:
    other = sender("ipc", rank=1)
    transport: Any = other._transport
    assert isinstance(transport, _IpcSender)
    transport._export = object()
    other.close()
    assert transport._export is None, "also where the group was never opened"


def test_nccl_sends_on_the_trainers_stream(streams: list[Stream]) -> None:
    calls: list[Any] = []

    class Bucket(list[torch.Tensor]):
        def clear(self) -> None:
            assert streams[0].waited, "memory that is still read would be given to the next bucket"
            super().clear()

    transport = sender("nccl", rank=0)._transport
    assert isinstance(transport, _NcclSender)
    transport._communicator = SimpleNamespace(broadcast=lambda *_, **named: calls.append(named))  # type: ignore[assignment]
    transport.send(Bucket([torch.ones(3)]), 0)
    assert calls == [{"src": 0, "stream": streams[0]}]
    assert streams[0].waited


def test_the_trainers_stream_comes_back_after_nccl_was_joined(
    streams: list[Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_adapter, "trainer_init", lambda _: streams.append(Stream()))
    group = TransferGroup("nccl", 1, "127.0.0.1", 1, (1,), 1.0, "digest", 64, b"key", 2)
    vllm_adapter.open_nccl_sender(group)
    assert streams[-1] is streams[0]


def test_the_buffer_of_an_ipc_sync_is_given_back_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """First what engines let go of goes to torch, then from there to the device."""
    calls: list[str] = []
    for name in ("ipc_collect", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    IpcExport.release()
    assert calls == ["ipc_collect", "empty_cache"]

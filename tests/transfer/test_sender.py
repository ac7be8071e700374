"""What the sending ends do to the trainer's process; CUDA and vLLM's communicator are stood in for."""

from collections.abc import Iterator
from contextlib import contextmanager
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
    transport = sender("nccl", rank=0)._transport
    assert isinstance(transport, _NcclSender)
    transport._communicator = SimpleNamespace(broadcast=lambda *_, **named: calls.append(named))  # type: ignore[assignment]
    transport.send([torch.ones(3)], 0)
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

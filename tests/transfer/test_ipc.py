"""Ranks that offer their buffers to engines wait for them at a store, and no longer than anybody copies.

The buffers themselves, shared GPU memory, are not there: in their place stands what was put into them.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.transfer import ipc, meeting
from rlhf_ray.transfer import sender as sender_module
from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.group import TransferGroup
from rlhf_ray.transfer.ipc import Mailbox, RankGate
from rlhf_ray.transfer.meeting import end_transfer, join_store, meet, open_store
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource

LONG = 120.0
"""Deadline of all waits, which no test waits for."""

BUCKET_BYTES = 64


class Buffer:
    """A rank's buffer, in the place of an `IpcExport`."""

    made = 0

    def __init__(self, size: int, device: torch.device) -> None:
        self.handles: dict[str, int] = {"GPU": 0}
        self.held = b""
        Buffer.made += 1

    def fill(self, bucket: Sequence[Tensor]) -> None:
        self.held = b"".join(tensor.detach().numpy().tobytes() for tensor in bucket)

    @staticmethod
    def release() -> None:
        pass


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> list[WeightSender]:
    """Two ranks of a policy, each with a connection to the store of their process group."""
    monkeypatch.setattr(sender_module, "IpcExport", Buffer)
    monkeypatch.setattr(meeting, "LOOK_SECONDS", 0.05)
    master = open_store("127.0.0.1", LONG)
    clients = [master, ipc.TCPStore("127.0.0.1", master.port)]
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    found = []
    for rank, store in enumerate(clients):
        source = DeepSpeedWeightSource(network, "float32", BUCKET_BYTES)
        assert len(source.manifest.buckets) > 2
        found.append(WeightSender(source, "ipc", rank=rank, seconds=LONG))
        transport: Any = found[-1]._transport
        transport._gate = RankGate(rank, 2, store, LONG)
    return found


def joined(
    ranks: list[WeightSender], threads: ThreadPoolExecutor, generation: int = 1
) -> tuple[TransferGroup, Mailbox]:
    """A group of one engine, and the engine's end."""
    group = ranks[0].open(generation, [1], "127.0.0.1")
    joining = threads.submit(ranks[0].join)
    store = join_store(group)
    meet(group, store)
    joining.result(60)
    return group, Mailbox(store, group)


def sending(ranks: list[WeightSender], threads: ThreadPoolExecutor) -> list["Future[dict[str, float]]"]:
    return [threads.submit(rank.send) for rank in ranks]


def held(rank: WeightSender) -> bytes:
    transport: Any = rank._transport
    buffer: bytes = transport._export.held
    return buffer


def test_an_engine_finds_each_bucket_in_the_buffers_of_all_ranks(
    ranks: list[WeightSender], threads: ThreadPoolExecutor
) -> None:
    _, mailbox = joined(ranks, threads)
    manifest = ranks[0].manifest
    for transfer in range(2):
        calls = sending(ranks, threads)
        for bucket in range(len(manifest.buckets)):
            mailbox.take(transfer, bucket)
            assert held(ranks[0]) == held(ranks[1])
            assert len(held(ranks[1])) == manifest.bucket_bytes[bucket]
            mailbox.acknowledge(transfer, bucket, 0)
        assert all(call.result(60) for call in calls)


def test_a_bucket_is_offered_once_the_slowest_rank_holds_it(
    ranks: list[WeightSender], threads: ThreadPoolExecutor
) -> None:
    _, mailbox = joined(ranks, threads)
    first = threads.submit(ranks[0].send)
    taking = threads.submit(mailbox.take, 0, 0)
    assert not taking.done()
    second = threads.submit(ranks[1].send)
    taking.result(60)
    assert held(ranks[1])
    for bucket in range(len(ranks[0].manifest.buckets)):
        mailbox.take(0, bucket)
        mailbox.acknowledge(0, bucket, 0)
    first.result(60), second.result(60)


def test_an_engine_that_dies_ends_the_waiting_of_all_ranks_which_can_send_again(
    ranks: list[WeightSender], threads: ThreadPoolExecutor
) -> None:
    """As they would have to be killed where they waited in a collective."""
    group, mailbox = joined(ranks, threads)
    calls = sending(ranks, threads)
    mailbox.take(0, 0)
    end_transfer(group, "rollout rank 0 died")
    for call in calls:
        with pytest.raises(TransferError, match="broken off: rollout rank 0 died"):
            call.result(60)
    with pytest.raises(TransferError, match="broken off: rollout rank 0 died"):
        mailbox.take(0, 1)  # another engine, which waits for what will not come
    made = Buffer.made
    _, again = joined(ranks, threads, generation=2)
    calls = sending(ranks, threads)
    for bucket in range(len(ranks[0].manifest.buckets)):
        again.take(0, bucket)
        again.acknowledge(0, bucket, 0)
    assert all(call.result(60) for call in calls)
    assert Buffer.made == made + 2, "a buffer whose handles an engine took away is given up on all ranks"


def test_a_sender_that_fails_takes_the_other_ranks_with_it(
    ranks: list[WeightSender], threads: ThreadPoolExecutor
) -> None:
    calls = sending(ranks, threads)
    for call in calls:
        with pytest.raises(TransferError, match="join the group before sending"):
            call.result(60)

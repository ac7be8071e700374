import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from rlhf_ray.transfer import gloo
from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.gloo import GlooGroup
from rlhf_ray.transfer.group import TransferGroup
from rlhf_ray.transfer.ipc import Mailbox
from rlhf_ray.transfer.meeting import join_store, meet, open_store
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource


def make_module(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(30, 50), nn.Linear(50, 20), nn.LayerNorm(20))


def sender(module: nn.Module, seconds: float = 20, bucket_bytes: int = 5000) -> WeightSender:
    return WeightSender(DeepSpeedWeightSource(module, "float32", bucket_bytes), "gloo", rank=0, seconds=seconds)


def in_threads(*calls: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def connect(trainer: WeightSender, group: TransferGroup) -> list[GlooGroup]:
    """Sender, engines and their workers meet; returns the workers."""

    def engine() -> None:
        meet(group, join_store(group))

    def worker(rank: int) -> GlooGroup:
        return GlooGroup(group, rank, join_store(group))

    engines = len(group.engine_workers)
    workers = [lambda rank=rank: worker(rank) for rank in range(1, group.world_size)]
    return in_threads(trainer.join, *[engine] * engines, *workers)[1 + engines :]


def receive_all(members: GlooGroup, source: DeepSpeedWeightSource) -> dict[str, torch.Tensor]:
    manifest = source.manifest
    received: dict[str, torch.Tensor] = {}
    for bucket in range(len(manifest.buckets)):
        received |= {name: t.clone() for name, t in members.receive(manifest.bucket(bucket), [])}
    return received


def test_all_workers_receive_all_weights(monkeypatch: pytest.MonkeyPatch):
    # Chunks smaller than a tensor, and not a multiple of its rows.
    monkeypatch.setattr(gloo, "CHUNK_BYTES", 444)
    module = make_module(0)
    source = DeepSpeedWeightSource(module, "float32", 5000)
    trainer = WeightSender(source, "gloo", rank=0, seconds=20)
    group = trainer.open(1, [1, 2], "127.0.0.1")
    workers = connect(trainer, group)
    assert len(workers) == 3
    for change in (0.0, 1.0):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(change)
        timings, *received = in_threads(trainer.send, *(lambda w=w: receive_all(w, source) for w in workers))
        assert timings.keys() == {"gather", "send"}
        for weights in received:
            assert weights.keys() == dict(module.named_parameters()).keys()
            for name, tensor in weights.items():
                assert torch.equal(tensor, module.get_parameter(name))


def test_a_new_generation_meets_without_the_old_members():
    trainer = sender(make_module(0))
    first = trainer.open(1, [1], "127.0.0.1")
    connect(trainer, first)
    second = trainer.open(2, [1, 1], "127.0.0.1")
    assert second.world_size == 3
    assert len(connect(trainer, second)) == 2


def test_generations_only_rise():
    trainer = sender(make_module(0))
    trainer.open(2, [1], "127.0.0.1")
    with pytest.raises(ValueError, match="generation 2 does not follow 2"):
        trainer.open(2, [1], "127.0.0.1")


def test_a_missing_engine_ends_the_rendezvous_at_its_deadline():
    trainer = sender(make_module(0), seconds=1)
    trainer.open(1, [1, 1], "127.0.0.1")
    started = time.monotonic()
    with pytest.raises(TransferError, match="the sender and 2 engines of generation 1 not all came"):
        trainer.join()
    assert time.monotonic() - started < 15


def test_an_engine_that_stops_receiving_ends_the_transfer_at_its_deadline():
    trainer = sender(nn.Linear(4000, 4000), seconds=2)
    group = trainer.open(1, [1], "127.0.0.1")
    idle = connect(trainer, group)
    with pytest.raises(TransferError, match="generation 1"):
        trainer.send()
    del idle


def test_an_unreachable_sender_is_named():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = TransferGroup("gloo", 1, "127.0.0.1", port, (1,), 1.0, "", 0, b"")
    with pytest.raises(TransferError, match=f"no sender at 127.0.0.1:{port}"):
        join_store(group)


def test_sending_before_joining_is_refused():
    trainer = sender(make_module(0))
    with pytest.raises(TransferError, match="join the group"):
        trainer.send()
    with pytest.raises(TransferError, match="open a group"):
        trainer.join()


def mailboxes(seconds: float = 5, key: bytes = b"key") -> tuple[Mailbox, Mailbox]:
    store = open_store("127.0.0.1", seconds)
    group = TransferGroup("ipc", 1, "127.0.0.1", store.port, (1, 1), seconds, "", 0, b"key")
    foreign = TransferGroup("ipc", 1, "127.0.0.1", store.port, (1, 1), seconds, "", 0, key)
    return Mailbox(store, foreign), Mailbox(join_store(group), group)


def test_mailbox_passes_handles_and_waits_for_every_engine():
    sender_side, engine_side = mailboxes()
    sender_side.post(0, 0, {"GPU-1": (1, b"handle")})
    assert engine_side.take(0, 0) == engine_side.take(0, 0)
    copied = threading.Event()
    waiting = threading.Thread(target=lambda: (sender_side.wait_for_engines(0, 0), copied.set()))
    waiting.start()
    engine_side.acknowledge(0, 0, 0)
    assert not copied.wait(0.3)
    engine_side.acknowledge(0, 0, 1)
    assert copied.wait(5)
    waiting.join()


def test_mailbox_refuses_what_the_sender_did_not_sign():
    stranger, engine_side = mailboxes(key=b"other")
    stranger.post(0, 0, {"GPU-1": ()})
    with pytest.raises(TransferError, match="signature"):
        engine_side.take(0, 0)


def test_mailbox_has_a_deadline():
    _, engine_side = mailboxes(seconds=1)
    with pytest.raises(TransferError, match="0/0/handles"):
        engine_side.take(0, 0)

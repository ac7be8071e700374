"""Weight sync to one engine against a bare gloo broadcast of the same bytes; on a GPU, against a copy within it.

    python benchmarks/weight_sync.py

Prints the seconds of each part and the ratio of the whole transfer to the broadcast: medians of repeats that take
turns, so that both see the same machine. The trainer's side is in this process.
"""

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from rlhf_ray.config.model import Dtype, ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.transfer.gloo import GlooGroup
from rlhf_ray.transfer.group import SENDER_RANK, TransferGroup, Transport
from rlhf_ray.transfer.manifest import ITEM_BYTES
from rlhf_ray.transfer.meeting import join_store, open_store
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource
from rlhf_ray.transfer.verification import sync_timings

LOCALHOST = "127.0.0.1"
SECONDS = 120.0
BUCKET_BYTES = 256 * 2**20


class DeviceCopy:
    """Bare copies of one tensor within a GPU's memory."""

    def __init__(self, size: int) -> None:
        self._tensor = torch.zeros(size, dtype=torch.uint8, device="cuda")

    def measure(self) -> float:
        """Measure the seconds until the copy is there."""
        torch.cuda.synchronize()
        started = time.perf_counter()
        self._tensor.clone()
        torch.cuda.synchronize()
        return time.perf_counter() - started

    def close(self) -> None:
        """Give the memory back."""
        del self._tensor


class Broadcast:
    """Bare broadcasts of one tensor to another process."""

    def __init__(self, size: int) -> None:
        self._tensor = torch.zeros(size, dtype=torch.uint8)
        store = open_store(LOCALHOST, SECONDS)
        group = TransferGroup("gloo", 0, LOCALHOST, store.port, (1,), SECONDS, "", size, b"")
        context = multiprocessing.get_context("spawn")
        self._pipe, remote = context.Pipe()
        self._process = context.Process(target=receive_broadcasts, args=(group, size, remote), daemon=True)
        self._process.start()
        self._members = GlooGroup(group, SENDER_RANK, store)

    def measure(self) -> float:
        """Measure the seconds until both sides are done."""
        started = time.perf_counter()
        self._members._process_group.broadcast(self._tensor, root=SENDER_RANK).wait()
        self._pipe.recv()
        return time.perf_counter() - started

    def close(self) -> None:
        """End the other process."""
        self._process.terminate()
        self._process.join()


def receive_broadcasts(group: TransferGroup, size: int, pipe: Connection) -> None:
    members = GlooGroup(group, SENDER_RANK + 1, join_store(group))
    tensor = torch.zeros(size, dtype=torch.uint8)
    while True:
        members._process_group.broadcast(tensor, root=SENDER_RANK).wait()
        pipe.send(None)


async def measure(path: Path, repeats: int, device: str = "cpu") -> dict[str, float]:
    """Return the parts of a sync, the bare transport of its bytes, and their ratio, in seconds.

    Args:
        path: of the model.
        repeats: of both; two more come first and do not count.
        device: cpu, in float32 over gloo; or cuda, in bfloat16 over shared memory of one GPU.
    """
    from transformers import AutoModelForCausalLM

    on_gpu = device == "cuda"
    dtype: Dtype = "bfloat16" if on_gpu else "float32"
    transport: Transport = "ipc" if on_gpu else "gloo"
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    model.to(device)
    source = DeepSpeedWeightSource(model, dtype, BUCKET_BYTES)
    sender = WeightSender(source, transport, rank=SENDER_RANK, seconds=SECONDS)
    rollout = RolloutConfig(gpus_per_worker=0.5 if on_gpu else 0)
    engine = Engine(ModelConfig(path=str(path), dtype=dtype), rollout, transport=transport, max_tokens=256)
    await engine.start()
    broadcast = DeviceCopy(source.manifest.bytes) if on_gpu else Broadcast(source.manifest.bytes)
    try:
        group = sender.open(1, [engine.workers], LOCALHOST)
        await asyncio.gather(engine.connect_transfer(group), asyncio.to_thread(sender.join))
        rows = []
        for version in range(1, repeats + 3):
            received, sent = await asyncio.gather(
                engine.receive(source.manifest, version), asyncio.to_thread(sender.send)
            )
            bare = await asyncio.to_thread(broadcast.measure)
            rows.append({**sync_timings(sent, [received]), "sync": received["receive"], "broadcast": bare})
    finally:
        broadcast.close()
        engine.shutdown()
    medians = {part: statistics.median(row[part] for row in rows[2:]) for part in rows[0]}
    parameters = source.manifest.bytes // ITEM_BYTES[dtype]
    return {"parameters": parameters, **medians, "ratio": medians["sync"] / medians["broadcast"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        path = build_tiny(
            Path(directory) / "model",
            ["a text for the tokenizer"],
            hidden=options.hidden,
            layers=options.layers,
            heads=options.hidden // 64,
            vocab_size=8000,
            tie=True,
        )
        result = asyncio.run(measure(path, options.repeats))
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()

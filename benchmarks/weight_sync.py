"""Weight sync to one engine against a bare gloo broadcast of the same bytes.

    python benchmarks/weight_sync.py

Prints the seconds of each part and the ratio of gather + wire + load + pause to the broadcast: medians of repeats that
take turns, so that both see the same machine. Everything runs on CPU, the trainer's side in this process.
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

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.transfer.gloo import GlooGroup
from rlhf_ray.transfer.group import SENDER_RANK, TransferGroup
from rlhf_ray.transfer.meeting import join_store, open_store
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource
from rlhf_ray.transfer.verification import sync_timings

LOCALHOST = "127.0.0.1"
SECONDS = 120.0
BUCKET_BYTES = 256 * 2**20


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


async def measure(path: Path, repeats: int) -> dict[str, float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    source = DeepSpeedWeightSource(model, "float32", BUCKET_BYTES)
    sender = WeightSender(source, "gloo", rank=SENDER_RANK, seconds=SECONDS)
    engine = Engine(ModelConfig(path=str(path), dtype="float32"), RolloutConfig(), max_tokens=256)
    await engine.start()
    broadcast = Broadcast(source.manifest.bytes)
    try:
        group = sender.open(1, [engine.workers], LOCALHOST)
        await asyncio.gather(engine.connect_transfer(group), asyncio.to_thread(sender.join))
        rows = []
        for version in range(1, repeats + 3):
            received, sent = await asyncio.gather(
                engine.receive(source.manifest, version), asyncio.to_thread(sender.send)
            )
            parts = sync_timings(sent, [received])
            rows.append({**parts, "sync": sum(parts.values()), "broadcast": await asyncio.to_thread(broadcast.measure)})
    finally:
        broadcast.close()
        engine.shutdown()
    medians = {part: statistics.median(row[part] for row in rows[2:]) for part in rows[0]}
    return {"parameters": source.manifest.bytes // 4, **medians, "ratio": medians["sync"] / medians["broadcast"]}


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

"""What the tests of trainers share: a ragged batch, a loss, runs in this process and in others."""

import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from safetensors.torch import load_file

from rlhf_ray.cluster.endpoint import free_port
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.training.process import RankDeadlines
from rlhf_ray.transfer.source import DeepSpeedWeightSource

LEARNING_RATE = 1e-2
# Larger than the rounding noise of gradients, which Adam would otherwise blow up to whole steps.
EPSILON = 1e-3
MAX_GRAD_NORM = 0.5
WEIGHT_DECAY = 0.1
TEMPERATURE = 0.8
ENTROPY_WEIGHT = 0.1
LORA = LoraConfig(r=4, lora_alpha=12)
DIVISIONS = {
    "one": [np.arange(6)],
    "several": [np.array([4, 1]), np.array([0]), np.zeros(0, np.int64), np.array([5, 2, 3])],
}
"""Micro-batches of one rank."""
TWO_RANKS = [[np.array([3, 1]), np.array([0, 4, 5])], [np.array([2]), np.zeros(0, np.int64)]]


LATE_SECONDS = 4.0


@dataclass(frozen=True)
class PolicyLoss:
    """Likelihood with an entropy bonus."""

    needs_entropy: ClassVar[bool] = True

    def __call__(self, outputs, columns):
        tokens = -outputs["logprobs"] - ENTROPY_WEIGHT * outputs["entropy"]
        loss = (columns["weight"] * tokens).sum()
        return loss, {"entropy": (columns["weight"] * outputs["entropy"]).sum().detach()}


@dataclass(frozen=True)
class SquaredError:
    """Of values to targets."""

    needs_entropy: ClassVar[bool] = False

    def __call__(self, outputs, columns):
        return (columns["weight"] * (outputs["values"] - columns["target"]) ** 2).sum(), {}


def make_batch(vocabulary: int = 261) -> TokenBatch:
    generator = np.random.default_rng(0)
    sizes = [(4, 8), (9, 3), (1, 12), (7, 5), (3, 1), (2, 6)]
    rows = [[generator.integers(5, vocabulary, n).astype(np.int32) for n in size] for size in sizes]
    return TokenBatch.from_sequences([r[0] for r in rows], [r[1] for r in rows])


def make_columns(batch: TokenBatch) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(1)
    tokens = int(batch.response_lengths.sum())
    weight = generator.uniform(0, 2 / tokens, tokens).astype(np.float32)
    return {"weight": weight, "target": generator.normal(size=tokens).astype(np.float32)}


def trainer_config(stage: int = 0, **settings) -> TrainerConfig:
    return TrainerConfig(
        **{
            "learning_rate": LEARNING_RATE,
            "epsilon": EPSILON,
            "max_grad_norm": MAX_GRAD_NORM,
            "weight_decay": WEIGHT_DECAY,
            "zero_stage": stage,
            **settings,
        }
    )


def start(
    path,
    stage=0,
    *,
    kind="policy",
    rank=0,
    world=1,
    port=None,
    dtype="float32",
    trainable=True,
    deadlines=None,
    **settings,
):
    from rlhf_ray.training.rank import TrainerRank

    return TrainerRank(
        kind,
        ModelConfig(path=str(path), dtype=dtype),
        trainer_config(stage, **settings),
        total_steps=10,
        seed=0,
        rank=rank,
        world=world,
        master=("127.0.0.1", port or free_port()),
        temperature=TEMPERATURE if kind == "policy" else 1.0,
        trainable=trainable,
        deadlines=deadlines,
    )


def train_adapter(rank: int, world: int, port: int, model: Path, saved: Path, out: Path) -> None:
    """At stages 2 and 3: two ranks continue the parent's state by one step; then what leaves them."""
    for stage in (2, 3):
        trainer = start(model, stage, rank=rank, world=world, port=port, lora=LORA)
        trainer.load(str(saved))
        step(trainer, TWO_RANKS[rank])
        trainer.save(str(out / f"continued_{stage}"))
        merged = merged_weights(trainer)
        trainer.export(str(out / f"export_{stage}"))
        if rank == 0:
            torch.save(merged, out / f"merged_{stage}.pt")


def merged_weights(trainer) -> dict[str, torch.Tensor]:
    """What would travel to an engine, by name."""
    source = DeepSpeedWeightSource(trainer.weight_source(), "float32", 50_000)
    found = {}
    for index, bucket in enumerate(source.buckets(keep=True)):
        for entry, tensor in zip(source.manifest.bucket(index), bucket, strict=True):
            found[entry.name] = tensor.view(entry.shape).clone()
    return found


def step(trainer, microbatches, loss=None):
    batch = make_batch()
    return trainer.train_step(batch, microbatches, loss or PolicyLoss(), make_columns(batch))


def saved_weights(directory: Path) -> dict[str, torch.Tensor]:
    """Float32 weights in a saved state of any number of ranks."""
    tensors = {}
    for path in sorted(directory.glob("rank_*.safetensors")):
        tensors |= load_file(path)
    return {name.removeprefix("master/"): value for name, value in tensors.items() if name.startswith("master/")}


def run_processes(target, world: int, *arguments) -> None:
    """Run `target(rank, world, port, *arguments)` in new processes; fails if one of them does."""
    context = multiprocessing.get_context("spawn")
    port = free_port()
    processes = [context.Process(target=target, args=(rank, world, port, *arguments)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
    assert codes == [0] * world


def train_two_ranks(rank: int, world: int, port: int, model: Path, saved: Path, out: Path) -> None:
    """At each stage: one step from the start, saved; then the parent's state of one rank continued by one step."""
    for stage in (0, 1, 2, 3):
        trainer = start(model, stage, rank=rank, world=world, port=port)
        step(trainer, TWO_RANKS[rank])
        trainer.save(str(out / f"first_{stage}"))
        trainer.load(str(saved))
        metrics = step(trainer, TWO_RANKS[rank])
        trainer.save(str(out / f"continued_{stage}"))
        if rank == 0:
            torch.save(metrics, out / f"metrics_{stage}.pt")
    trainer.export(str(out / "export"))


def load_counted(rank: int, world: int, port: int, model: Path, out: Path) -> None:
    """Load what as many ranks saved, then what one rank saved, and note which parts and tensors are read."""
    from rlhf_ray.checkpoint.tensors import LazyTensors
    from rlhf_ray.training import saved_parts

    trainer = start(model, 3, rank=rank, world=world, port=port)
    step(trainer, TWO_RANKS[rank])
    trainer.average_weights(0.5)
    trainer.save(str(out / "two"))
    opened: list[str] = []
    read: list[str] = []
    open_tensors, get = saved_parts.open_tensors, LazyTensors.__getitem__
    saved_parts.open_tensors = lambda path, *rest: (opened.append(Path(path).name), open_tensors(path, *rest))[1]
    LazyTensors.__getitem__ = lambda part, name: (read.append(name), get(part, name))[1]
    for name in ("two", "one"):
        opened.clear(), read.clear()
        trainer.load(str(out / name))
        (out / f"{name}_{rank}.json").write_text(json.dumps([opened, read]))


def resume(rank: int, world: int, port: int, model: Path, saved: Path, out: Path, stage: int) -> None:
    trainer = start(model, stage, rank=rank, world=world, port=port, schedule="cosine", warmup_steps=3)
    trainer.load(str(saved))
    metrics = [step(trainer, DIVISIONS["several"]) for _ in range(2)]
    trainer.save(str(out))
    torch.save(metrics, out / "metrics.pt")


def wait_for_nobody(rank: int, world: int, port: int, out: Path) -> None:
    """The first of two ranks, whose peer never comes."""
    from rlhf_ray.training.process import RendezvousFailed, join

    try:
        join(rank, 2, ("127.0.0.1", port), torch.device("cpu"), RankDeadlines(join=2.0))
    except RendezvousFailed as error:
        out.write_text(str(error))


def load_late(rank: int, world: int, port: int, model: Path, out: Path) -> None:
    """Rank 1 takes longer to load than a collective may take."""
    from rlhf_ray.training import rank as rank_module

    load = rank_module.load_network

    def late(*arguments):
        time.sleep(LATE_SECONDS * rank)
        return load(*arguments)

    rank_module.load_network = late
    deadlines = RankDeadlines(load=120, collective=LATE_SECONDS / 2)
    start(model, 3, rank=rank, world=world, port=port, deadlines=deadlines)
    groups = torch.distributed.distributed_c10d._world.pg_map
    limits = {str(group._get_backend(torch.device("cpu")).options._timeout) for group in groups}
    (out / f"limits_{rank}").write_text(f"{len(groups)} groups: {limits}")


def meet_beside_a_dead_build(rank: int, world: int, port: int, extensions: Path) -> None:
    """Join where a process that was killed while it compiled DeepSpeed's operator left its lock."""
    import os

    from rlhf_ray.training.process import join

    os.environ["TORCH_EXTENSIONS_DIR"] = str(extensions)
    join(rank, world, ("127.0.0.1", port), torch.device("cpu"), RankDeadlines(30, 30, 30))

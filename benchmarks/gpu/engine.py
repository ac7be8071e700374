"""Parts that need vLLM: one engine beside this process, or on the GPU with it."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import weight_sync
from benchmarks.gpu.machine import gpu_names, peaks_of, settled_gib
from benchmarks.gpu.model import HEADS, HIDDEN, KEY_VALUE_HEADS, LAYERS, VOCABULARY, half_billion, miniature
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.models.facts import weight_bytes
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.rollout.engine_arguments import engine_arguments
from rlhf_ray.rollout.requests import GenerationRequest, GenerationResult
from rlhf_ray.transfer.group import Transport

PROMPT_TOKENS, NEW_TOKENS, ANSWERS = 64, 512, 256
CYCLES = 3
BFLOAT16_BYTES = 2


@asynccontextmanager
async def engine(folder: Path) -> AsyncIterator[Engine]:
    """Start an engine on the GPU; it ends with the block."""
    model = ModelConfig(path=str(half_billion(folder)), dtype="bfloat16")
    running = Engine(model, RolloutConfig(gpus_per_worker=1), max_tokens=PROMPT_TOKENS + NEW_TOKENS)
    try:
        await running.start()
        yield running
    finally:
        running.shutdown()


async def answers(running: Engine, count: int, new_tokens: int) -> list[GenerationResult]:
    """Let an engine write answers of a fixed length."""
    generator = np.random.default_rng(0)
    requests = [
        GenerationRequest(
            request_id=f"{time.monotonic_ns()}/{number}",
            prompt_ids=generator.integers(5, VOCABULARY, PROMPT_TOKENS).astype(np.int32),
            n=1,
            seed=number,
            max_tokens=new_tokens,
            ignore_eos=True,
        )
        for number in range(count)
    ]
    return [result async for batch in running.generate(requests) for result in batch]


def _run(part: Coroutine[Any, Any, dict[str, float]]) -> dict[str, float]:
    return asyncio.run(part)


def start(folder: Path) -> dict[str, float]:
    """Start an engine, and let it write and score."""
    half_billion(folder)

    async def part() -> dict[str, float]:
        started = time.perf_counter()
        async with engine(folder) as running:
            ready = time.perf_counter()
            found = await answers(running, 8, 32)
            [scores] = await running.score([np.arange(5, 69, dtype=np.int32)])
            assert np.isfinite(scores).all()
            return {"start_seconds": ready - started, "gib": settled_gib(), "finished": len(found)}

    return _run(part())


def rehearse(folder: Path) -> None:
    """Bind the engine's arguments on a GPU to those that vLLM has, without starting it."""
    from vllm import AsyncEngineArgs

    model = ModelConfig(path=str(miniature(folder)), dtype="bfloat16")
    transports: tuple[Transport, ...] = ("ipc", "nccl")
    for transport in transports:
        rollout = RolloutConfig(gpus_per_worker=1)
        inspect.signature(AsyncEngineArgs).bind(
            **engine_arguments(model, rollout, transport=transport, seed=0, max_tokens=NEW_TOKENS)
        )


def sleep_cycles(folder: Path) -> dict[str, float]:
    """Put an engine to sleep and wake it, at each level; its memory must come back, and not grow."""
    half_billion(folder)

    async def part() -> dict[str, float]:
        async with engine(folder) as running:
            awake = [settled_gib()]
            asleep = []
            for level in (1,) * CYCLES:
                await running.sleep(level)
                asleep.append(settled_gib())
                await running.wake()
                awake.append(settled_gib())
                await answers(running, 8, 32)
            await running.sleep(2)
            asleep.append(settled_gib())
            print("awake", awake, "asleep", asleep)
            return {
                "awake_gib": awake[0],
                "asleep_gib": asleep[0],
                "asleep_2_gib": asleep[-1],
                "asleep_share": max(asleep) / awake[0],
                "growth_gib": max(awake[-1] - awake[1], asleep[CYCLES - 1] - asleep[0]),
            }

    return _run(part())


def decode(folder: Path) -> dict[str, float]:
    """Count tokens of many answers at once; each step must read all weights, and the keys and values of each answer."""
    path = half_billion(folder)

    async def part() -> dict[str, float]:
        async with engine(folder) as running:
            await answers(running, ANSWERS, 32)  # compiles, and captures graphs
            started = time.perf_counter()
            found = await answers(running, ANSWERS, NEW_TOKENS)
            seconds = time.perf_counter() - started
            written = sum(len(one.token_ids) for result in found for one in result.completions)
            return {"tokens_per_second": written / seconds, "share_of_bytes_limit": limit(path) / seconds}

    return _run(part())


def limit(path: Path) -> float:
    """Return the least seconds of `decode` at the bandwidth of the GPU."""
    weights = weight_bytes(str(path), False) * BFLOAT16_BYTES / 4  # written in float32
    token = 2 * LAYERS * KEY_VALUE_HEADS * (HIDDEN // HEADS) * BFLOAT16_BYTES
    step = weights + ANSWERS * token * (PROMPT_TOKENS + NEW_TOKENS / 2)
    return NEW_TOKENS * step / (peaks_of(gpu_names()[0]).bandwidth * 1e9)


def sync(folder: Path) -> dict[str, float]:
    """Send all weights to an engine on this GPU some times, each in turn with a copy of as many bytes."""
    figures = asyncio.run(weight_sync.measure(half_billion(folder), repeats=5, device="cuda"))
    return {name: value for name, value in figures.items() if name != "parameters"}

"""A real engine that tests call from their own thread."""

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import Dtype, ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.rollout.requests import Completion, GenerationRequest, GenerationResult


class Host:
    """An engine with an event loop of its own, called from the test's thread."""

    def __init__(self, path: Path, lora: LoraConfig | None = None, dtype: Dtype = "float32", **rollout: Any) -> None:
        self.path = path
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        model = ModelConfig(path=str(path), dtype=dtype)
        self.engine = Engine(model, RolloutConfig(**rollout), max_tokens=256, lora=lora)
        self.run(self.engine.start())

    def submit(self, call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop)

    def run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return self.submit(call).result(120)

    def score(self, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
        return self.run(self.engine.score(sequences))

    def generate(self, requests: list[GenerationRequest], queued: bool = False) -> dict[str, list[Completion]]:
        return self.run(collect(self.engine, requests, queued))

    def close(self) -> None:
        self.engine.shutdown()
        self._loop.call_soon_threadsafe(self._loop.stop)


async def collect(engine: Engine, requests: list[GenerationRequest], queued: bool) -> dict[str, list[Completion]]:
    results: list[GenerationResult] = []
    async for batch in engine.generate(requests, queued=queued):
        results += batch
    assert len(results) == len(requests)
    return {result.request_id: result.completions for result in results}

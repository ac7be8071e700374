"""Weights over CUDA IPC and NCCL into engines on GPUs, and vLLM's sleep levels."""

import asyncio
import multiprocessing
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.models.logit_size import LogitSize
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.rollout.engine_arguments import choose_transport
from rlhf_ray.rollout.requests import GenerationRequest
from rlhf_ray.transfer.group import Transport
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource
from rlhf_ray.transfer.verification import Tolerance, WeightComparison, compare_scores, probe_sequences

pytestmark = pytest.mark.gpu

VOCABULARY = 512
PROBES = probe_sequences(VOCABULARY, [np.arange(5, 100)])
BUCKET_BYTES = 2**18


def devices(count: int) -> pytest.MarkDecorator:
    return pytest.mark.skipif(torch.cuda.device_count() < count, reason=f"needs {count} GPUs")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    # Heads of 64: the smallest that all of vLLM's GPU attention kernels have.
    return build_tiny(directory, ["text"], hidden=256, heads=4, vocab_size=VOCABULARY, tie=True, initializer_range=0.08)


def serve(path: Path, rollout: RolloutConfig, transport: Transport, device: str, calls: Any, results: Any) -> None:
    """An engine in a process of its own, which sees its GPU alone; runs the calls that it is sent."""
    import os

    os.environ["CUDA_VISIBLE_DEVICES"] = device

    async def run() -> None:
        engine = Engine(ModelConfig(path=str(path)), rollout, transport=transport, max_tokens=256)
        await engine.start()
        results.put(engine.workers)
        while (call := await asyncio.to_thread(calls.get)) is not None:
            name, *arguments = call
            try:
                results.put(await perform(engine, name, arguments))
            except Exception as error:
                results.put(error)
        engine.shutdown()

    asyncio.run(run())


async def perform(engine: Engine, name: str, arguments: list[Any]) -> Any:
    if name == "generate":
        return [result async for batch in engine.generate(*arguments) for result in batch]
    outcome: Coroutine[Any, Any, Any] = getattr(engine, name)(*arguments)
    return await outcome


class RemoteEngine:
    def __init__(self, path: Path, rollout: RolloutConfig, transport: Transport, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._calls, self._results = context.Queue(), context.Queue()
        arguments = (path, rollout, transport, device, self._calls, self._results)
        self._process = context.Process(target=serve, args=arguments)
        self._process.start()
        self.workers = self._results.get(timeout=300)

    def begin(self, *call: Any) -> None:
        self._calls.put(call)

    def end(self) -> Any:
        result = self._results.get(timeout=300)
        if isinstance(result, Exception):
            raise result
        return result

    def call(self, *call: Any) -> Any:
        self.begin(*call)
        return self.end()

    def close(self) -> None:
        self._calls.put(None)
        self._process.join(60)
        self._process.kill()


@torch.no_grad()
def scores(model: torch.nn.Module) -> list[np.ndarray]:
    results = []
    for ids in PROBES:
        tokens = torch.as_tensor(ids, dtype=torch.long, device="cuda:0")[None]
        distribution = torch.log_softmax(model(tokens).logits[0, :-1].float(), dim=-1)
        results.append(distribution.gather(-1, tokens[0, 1:, None])[:, 0].cpu().numpy())
    return results


def follow_trainer(path: Path, rollout: RolloutConfig, transport: Transport, device: str, level: int | None) -> None:
    """Two syncs, each verified in bfloat16; with `level`, the engine sleeps before each and wakes in two steps."""
    from transformers import AutoModelForCausalLM

    engine = RemoteEngine(path, rollout, transport, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).to("cuda:0")
        source = DeepSpeedWeightSource(model, "bfloat16", BUCKET_BYTES)
        assert len(source.manifest.buckets) > 1
        sender = WeightSender(source, transport, rank=0, seconds=60)
        engine.begin("connect_transfer", sender.open(1, [engine.workers], "127.0.0.1"), 0)
        sender.join()
        engine.end()
        comparison = WeightComparison("bfloat16")
        for version in (1, 2):
            if level is not None:
                engine.call("sleep", level)
                engine.call("wake", ["weights"])
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(torch.randn_like(parameter) * 0.03)
            engine.begin("receive", source.manifest, version)
            sender.send()
            assert engine.end()["receive"] > 0
            if level is not None:
                engine.call("wake", ["kv_cache"])
            comparison.check(sender.sent, {0: engine.call("held_weights")}, version)
            assert comparison.share == 1
            found, tolerance = engine.call("score", PROBES), Tolerance.of("bfloat16", LogitSize())
            compare_scores(scores(model), found, tolerance, dtype="bfloat16", version=version)
        request = GenerationRequest("r", PROBES[0], 2, 0, 16)
        (result,) = engine.call("generate", [request])
        assert {span.version for completion in result.completions for span in completion.weight_spans} == {2}
        sender.close()
    finally:
        engine.close()


@devices(1)
@pytest.mark.parametrize("level", [None, 1, 2])
def test_engine_on_the_trainers_gpu_follows_it_over_ipc(model: Path, level: int | None):
    rollout = RolloutConfig(gpus_per_worker=0.5, engine={"enforce_eager": True})
    assert choose_transport(rollout, overlap="all") == "ipc"
    follow_trainer(model, rollout, "ipc", "0", level)


@devices(2)
def test_engine_on_another_gpu_follows_over_nccl(model: Path):
    rollout = RolloutConfig(gpus_per_worker=1, engine={"enforce_eager": True})
    assert choose_transport(rollout, overlap="none") == "nccl"
    follow_trainer(model, rollout, "nccl", "1", None)


@devices(3)
def test_tensor_parallel_engine_follows_over_nccl(model: Path):
    follow_trainer(model, RolloutConfig(gpus_per_worker=2, engine={"enforce_eager": True}), "nccl", "1,2", None)


@devices(1)
def test_compiled_engine_computes_with_new_weights(model: Path):
    follow_trainer(model, RolloutConfig(gpus_per_worker=0.5), "ipc", "0", None)

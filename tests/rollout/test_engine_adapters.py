"""Adapters that are loaded in place into a running vLLM engine: it computes with the newest one, as PEFT does."""

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.lora import add_adapter
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import EngineDirty
from rlhf_ray.training.export import adapter_files
from rlhf_ray.transfer.errors import TransferError
from tests.rollout.engine_host import Host, collect
from tests.rollout.test_engine import (
    LIMIT,
    PROBES,
    TEXTS,
    VOCABULARY,
    Trainer,
    difference,
    make_requests,
    written_logprobs,
)

LORA = LoraConfig(r=12, lora_alpha=20, use_rslora=True)


class AdapterTrainer(Trainer):
    """A model whose adapter alone is trained."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        add_adapter(self.model, LORA, seed=0)

    def change(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)

    def files(self, path: Path) -> dict[str, bytes]:
        return adapter_files(self.model, ModelConfig(path=str(path)), keep=True)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    model = build_tiny(
        tmp_path_factory.mktemp("adapters") / "model", TEXTS, heads=2, vocab_size=VOCABULARY, initializer_range=0.08
    )
    running = Host(model, lora=LORA)
    yield running
    running.close()


@pytest.fixture
def trainer(host: Host) -> AdapterTrainer:
    return AdapterTrainer(host.path)


def load(host: Host, trainer: AdapterTrainer, version: int) -> dict[str, float]:
    return host.run(host.engine.load_adapter(trainer.files(host.path), version))


def test_each_adapter_takes_the_place_of_the_one_before(host: Host, trainer: AdapterTrainer) -> None:
    assert difference(host.score(PROBES), trainer.score()) < LIMIT
    for version in (1, 2, 3):
        trainer.change(seed=version)
        before = host.score(PROBES)
        assert load(host, trainer, version).keys() == {"pause", "load", "bytes"}
        assert difference(before, host.score(PROBES)) > 100 * LIMIT
        assert difference(host.score(PROBES), trainer.score()) < LIMIT
        [request] = make_requests(1)
        for completion in host.generate([request])["r0"]:
            expected = written_logprobs(trainer.model, request.prompt_ids, completion, 1.0)
            assert np.abs(expected - completion.logprobs).max() < LIMIT
            assert completion.weight_spans[0].version == version
    assert not list(Path("/dev/shm").glob("rlhf_ray_adapter_*"))


def test_requests_in_flight_go_on_with_the_new_adapter(host: Host, trainer: AdapterTrainer) -> None:
    old = AdapterTrainer(host.path)
    load(host, trainer, 5)
    host.generate(make_requests(1))
    trainer.change(seed=9)
    [request] = make_requests(1, n=2, max_tokens=200, ignore_eos=True)
    running = host.submit(collect(host.engine, [request], queued=False))
    threading.Event().wait(0.1)
    load(host, trainer, 6)
    for completion in running.result(60)["r0"]:
        before, after = completion.weight_spans
        assert (before.version, after.version) == (5, 6)
        for model, span in ((old.model, before), (trainer.model, after)):
            expected = written_logprobs(model, request.prompt_ids, completion, 1.0)
            part = slice(span.start, span.end)
            assert np.abs(expected[part] - completion.logprobs[part]).max() < LIMIT


def test_an_adapter_that_vllm_refuses_leaves_the_engine_dirty_until_a_good_one(
    host: Host, trainer: AdapterTrainer
) -> None:
    files = trainer.files(host.path) | {"adapter_model.safetensors": b"12345678"}
    with pytest.raises(TransferError, match="adapter of version 7 broke off"):
        host.run(host.engine.load_adapter(files, 7))
    with pytest.raises(EngineDirty, match="serves nothing"):
        host.score(PROBES)
    trainer.change(seed=8)
    load(host, trainer, 8)
    assert difference(host.score(PROBES), trainer.score()) < LIMIT

"""Trainers on CUDA: bfloat16 at every ZeRO stage, variable-length attention, clearing the device and coming back."""

import gc
import importlib.util

import numpy as np
import pytest
import torch

from rlhf_ray.algorithms.losses import NegativeLogLikelihood
from rlhf_ray.cluster.endpoint import free_port
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.training.rank import TrainerRank

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]
ROWS = [np.arange(4), np.arange(4, 8)]


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    sizes = generator.integers(2, 60, (8, 2))
    rows = [[generator.integers(5, 261, n).astype(np.int32) for n in size] for size in sizes]
    return TokenBatch.from_sequences([r[0] for r in rows], [r[1] for r in rows])


def start(path, stage, trainable=True, **model):
    config = ModelConfig(path=str(path), **{"dtype": "bfloat16", **model})
    trainer = TrainerConfig(gpus_per_worker=1, zero_stage=stage, learning_rate=1e-3)
    return TrainerRank(
        "policy", config, trainer, total_steps=10, seed=0, master=("127.0.0.1", free_port()), trainable=trainable
    )


def step(trainer, batch):
    tokens = int(batch.response_lengths.sum())
    return trainer.train_step(batch, ROWS, NegativeLogLikelihood(), {"weight": np.full(tokens, 1 / tokens, np.float32)})


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_sleep_clears_the_device_and_wake_restores_every_bit(tiny_model, batch, stage, dtype):
    trainer = start(tiny_model.tied, stage, dtype=dtype)
    losses = [step(trainer, batch)["loss"] for _ in range(3)]
    assert losses[2] < losses[0]
    before = trainer.logprobs(batch, ROWS)["logprobs"]
    gc.collect()
    held = torch.cuda.memory_allocated()
    trainer.memory.sleep()
    assert torch.cuda.memory_allocated() < 0.1 * held
    trainer.memory.wake()
    np.testing.assert_array_equal(trainer.logprobs(batch, ROWS)["logprobs"], before)
    assert step(trainer, batch)["loss"] < losses[2]
    trainer.memory.sleep()
    trainer.memory.wake()


def test_frozen_reference_sleeps_too(tiny_model, batch):
    reference = start(tiny_model.untied, 0, trainable=False)
    before = reference.logprobs(batch, ROWS)["logprobs"]
    reference.memory.sleep()
    reference.memory.wake()
    np.testing.assert_array_equal(reference.logprobs(batch, ROWS)["logprobs"], before)


def test_state_moves_between_stages(tiny_model, batch, tmp_path):
    trainer = start(tiny_model.tied, 1)
    step(trainer, batch)
    trainer.save(str(tmp_path))
    wanted = step(trainer, batch)
    for stage in (0, 2, 3):
        other = start(tiny_model.tied, stage)
        other.load(str(tmp_path))
        assert step(other, batch)["loss"] == pytest.approx(wanted["loss"], rel=1e-2)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash_attn")
def test_packed_rows_equal_padded_ones(tiny_model, batch):
    packed = start(tiny_model.tied, 0, trainable=False, attention="flash_attention_2")
    padded = start(tiny_model.tied, 0, trainable=False, attention="sdpa")
    np.testing.assert_allclose(
        packed.logprobs(batch, ROWS)["logprobs"], padded.logprobs(batch, ROWS)["logprobs"], atol=0.1
    )

"""Two batches in one optimizer step: the numbers of plain AdamW on the sum of their losses, at every ZeRO stage."""

import numpy as np
import plain_model
import pytest
import torch
from training_cases import (
    DIVISIONS,
    TWO_RANKS,
    PolicyLoss,
    make_batch,
    make_columns,
    run_processes,
    saved_weights,
    start,
)

from rlhf_ray.algorithms.losses import PretrainingLoss
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.training.microbatch import ExtraBatch

GAMMA = 0.3
TOLERANCE = 2e-5
DIVIDED = [[np.array([2]), np.array([0])], [np.array([1]), np.zeros(0, np.int64)]]
"""Of the texts, for two ranks."""


def texts() -> ExtraBatch:
    generator = np.random.default_rng(5)
    rows = [generator.integers(5, 261, size).astype(np.int32) for size in (6, 11, 4)]
    batch = TokenBatch.from_sequences([row[:1] for row in rows], [row[1:] for row in rows])
    tokens = int(batch.response_lengths.sum())
    return ExtraBatch(batch, PretrainingLoss(GAMMA), {"weight": np.full(tokens, 1 / tokens, np.float32)})


def both(model, batch, columns):
    extra = texts()
    logprobs, _ = plain_model.policy_outputs(model, extra.batch, temperature=1.0)
    return plain_model.policy_loss(model, batch, columns) - GAMMA * logprobs.mean()


@pytest.fixture(scope="module")
def expected(tiny_model):
    """Weights after a step of the plain model, its loss and gradient norm, and the texts' likelihood before it."""
    batch = make_batch()
    columns = make_columns(batch)
    model = plain_model.load(tiny_model.tied)
    with torch.no_grad():
        nll = -float(plain_model.policy_outputs(model, texts().batch, temperature=1.0)[0].mean())
    history = plain_model.adamw_steps(model, lambda m: both(m, batch, columns), 1)
    return {name: p.detach().float() for name, p in model.named_parameters()}, history[0], nll


def check(found, metrics, expected):
    weights, (loss, norm), nll = expected
    assert found.keys() == weights.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=TOLERANCE)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert metrics["loss/ptx_avg"] == pytest.approx(nll, abs=1e-5), "without gamma"


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_one_step_learns_from_both(tiny_model, expected, tmp_path, stage):
    batch = make_batch()
    trainer = start(tiny_model.tied, stage)
    rows = [np.array([1, 2]), np.array([0])]
    arguments = batch, DIVISIONS["several"], PolicyLoss(), make_columns(batch)
    metrics = trainer.train_step(*arguments, extra=texts(), extra_microbatches=rows)
    trainer.save(str(tmp_path))
    check(saved_weights(tmp_path), metrics, expected)


def train(rank, world, port, model, out):
    batch = make_batch()
    for stage in (0, 2, 3):
        trainer = start(model, stage, rank=rank, world=world, port=port)
        arguments = batch, TWO_RANKS[rank], PolicyLoss(), make_columns(batch)
        metrics = trainer.train_step(*arguments, extra=texts(), extra_microbatches=DIVIDED[rank])
        trainer.save(str(out / str(stage)))
        torch.save(metrics, out / f"{stage}.pt")


def test_two_ranks_learn_the_same(tiny_model, expected, tmp_path):
    run_processes(train, 2, tiny_model.tied, tmp_path)
    for stage in (0, 2, 3):
        check(saved_weights(tmp_path / str(stage)), torch.load(tmp_path / f"{stage}.pt"), expected)

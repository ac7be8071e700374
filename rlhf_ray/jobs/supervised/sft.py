"""`rlhf sft`: supervised fine-tuning, and continued pre-training on plain text."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.supervised import NegativeLogLikelihood
from rlhf_ray.config.jobs.supervised import SFTConfig
from rlhf_ray.data.loading import read_supervised
from rlhf_ray.data.rows import SupervisedRow, supervised_batch
from rlhf_ray.jobs.supervised.loop import Task, TrainingBatch, learn, learned_before
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup
from rlhf_ray.runs.model_checks import check_supervised, job_tokenizer


def run(config: SFTConfig) -> None:
    """Minimise the mean negative log-likelihood of the learned tokens."""
    if learned_before(config):
        return
    tokenizer = job_tokenizer(config.model)
    check_supervised(config, tokenizer)
    learn(
        config,
        Task(
            kind="policy",
            loss=NegativeLogLikelihood(),
            train=read_supervised(config.data, tokenizer),
            held_out=read_supervised(config.evaluation_data, tokenizer) if config.evaluation_data else None,
            lesson=_lesson,
            evaluate=_evaluate,
        ),
    )


def _lesson(rows: Sequence[SupervisedRow]) -> TrainingBatch:
    batch = supervised_batch(rows)
    learned, offsets = torch.from_numpy(batch.written), torch.from_numpy(batch.response_offsets)
    return TrainingBatch(batch, {"weight": token_weights("token_mean", learned, offsets).numpy()})


def _evaluate(trainer: TrainerGroup, rows: Sequence[SupervisedRow]) -> dict[str, float]:
    batch = supervised_batch(rows)
    logprobs = trainer.logprobs(SharedBatch.put(batch))["logprobs"]
    loss = -float(np.mean(logprobs[batch.written], dtype=np.float64))
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

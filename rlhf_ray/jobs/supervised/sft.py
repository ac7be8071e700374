"""`rlhf sft`: supervised fine-tuning, and continued pre-training on plain text."""

import math
from collections.abc import Sequence

import numpy as np
import torch

from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.losses import NegativeLogLikelihood
from rlhf_ray.config.jobs.supervised import SFTConfig
from rlhf_ray.data.loading import read_supervised
from rlhf_ray.data.rows import SupervisedRow, supervised_batch
from rlhf_ray.jobs.supervised.loop import SupervisedTask, TrainingBatch, learn, learned_before
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup
from rlhf_ray.runs.model_checks import check_supervised


def run(config: SFTConfig) -> None:
    """Train a language model on demonstrations or plain text."""
    if learned_before(config):
        return
    tokenizer = check_supervised(config)
    held_out = read_supervised(config.evaluation_data, tokenizer) if config.evaluation_data else None
    learn(config, SFTTask(read_supervised(config.data, tokenizer), held_out))


class SFTTask(SupervisedTask[SupervisedRow]):
    """Minimise the mean negative log-likelihood of the learned tokens of a step."""

    kind = "policy"
    loss = NegativeLogLikelihood()

    def batch(self, rows: Sequence[SupervisedRow]) -> TrainingBatch:
        """Weigh each learned token of the step alike."""
        batch = supervised_batch(rows)
        learned, offsets = torch.from_numpy(batch.written), torch.from_numpy(batch.response_offsets)
        return TrainingBatch(batch, {"weight": token_weights("token_mean", learned, offsets).numpy()})

    def evaluate(self, trainer: TrainerGroup, rows: Sequence[SupervisedRow]) -> dict[str, float]:
        """Return the mean negative log-likelihood of learned tokens, in nats, and its exponential."""
        batch = supervised_batch(rows)
        logprobs = trainer.logprobs(SharedBatch.put(batch))["logprobs"]
        loss = -float(np.mean(logprobs[batch.written], dtype=np.float64))
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}

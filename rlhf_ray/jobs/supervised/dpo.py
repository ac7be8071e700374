"""`rlhf dpo`: a policy from preferences, by one actor (or N data-parallel ranks of it)."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np

from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.config.preferences import OF_SINGLE_ANSWERS
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.preferences import check_mismatches, holds_labels, read_labelled, read_pairs
from rlhf_ray.jobs.supervised.loop import learn, learned_before
from rlhf_ray.jobs.supervised.preferences import LabelledTask, PairTask, PreferenceTask
from rlhf_ray.jobs.supervised.reference import ReferenceLogprobs
from rlhf_ray.models.identity import model_identity
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup
from rlhf_ray.runs.model_checks import check_supervised

MICROBATCHES_PER_CALL = 16
"""Micro-batches of each rank in one call to the reference: enough that sorting by length leaves little padding."""


def run(config: DPOConfig) -> None:
    """Raise the log-probabilities of preferred answers over those of others, held to where the policy began.

    The reference is the policy before its first step: what it says of all rows is computed once, and kept.
    """
    if learned_before(config):
        return
    tokenizer = check_supervised(config)
    task = _read_task(config, tokenizer)
    keeps = task.needs_reference and config.reference_cache is not None
    identity = model_identity(config.model) if keeps else ""
    task.reference_of = partial(_reference_of, config, identity)
    learn(config, task)


def _reference_of(
    config: DPOConfig, identity: str, trainer: TrainerGroup, say: Callable[[str], None]
) -> ReferenceLogprobs:
    """Return the policy as it began as the reference: with its adapter off, or as it was loaded, if there is none."""

    def start(batch: TokenBatch) -> np.ndarray:
        return trainer.logprobs(SharedBatch.put(batch), adapter=config.trainer.lora is None)["logprobs"]

    tokens = MICROBATCHES_PER_CALL * config.tokens_per_microbatch * config.trainer.workers
    return ReferenceLogprobs(config.reference_cache, identity, start, tokens, say)


def _read_task(config: DPOConfig, tokenizer: Any) -> PreferenceTask[Any]:
    """Read the data in the form that the loss takes; bco takes either, as the data has it."""
    data, held_out, first = config.data, config.evaluation_data, config.loss.type[0]
    single = first in OF_SINGLE_ANSWERS or (config.loss.type == ["bco"] and holds_labels(data))
    if not single:
        pairs = read_pairs(data, tokenizer)
        return PairTask(config.loss, pairs, read_pairs(held_out, tokenizer) if held_out else None, config.batch_size)
    rows = read_labelled(data, tokenizer, config.batch_size)
    kept = read_labelled(held_out, tokenizer, config.batch_size) if held_out else None
    if first == "kto":
        check_mismatches(rows.rows, data.path)
    return LabelledTask(cast(Any, first), config.loss, rows, kept, config.batch_size)

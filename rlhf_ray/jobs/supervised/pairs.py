"""Optimizer steps over pairs of a better and a worse answer: DPO and its family."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.preference_losses import PreferenceLoss, aot_statistic, aot_unpaired_statistics
from rlhf_ray.algorithms.preferences import Kind, Pairs, PreferenceObjective
from rlhf_ray.config.jobs.dpo import PLAIN_SUMS, SMOOTHED, WITH_LIKELIHOOD, PreferenceLossConfig
from rlhf_ray.data.loading import Loaded
from rlhf_ray.data.preferences import Answer, PairRow, answers_batch, token_shares
from rlhf_ray.jobs.supervised.loop import TrainingBatch
from rlhf_ray.jobs.supervised.preferences import PreferenceTask, column
from rlhf_ray.jobs.supervised.reference import ReferenceLogprobs, summed


def pair_loss(config: PreferenceLossConfig) -> PreferenceLoss:
    """The losses of a config, weighed, with their likelihood term."""
    weights = config.weights or [1.0] * len(config.type)
    coefficient = config.nll_coefficient
    if coefficient is None:
        coefficient = 1.0 if WITH_LIKELIHOOD.intersection(config.type) else 0.0
    # Losses of single answers never come here.
    kinds = cast(list[Kind], config.type)
    objectives = tuple((_objective(config, kind), weight) for kind, weight in zip(kinds, weights, strict=True))
    return PreferenceLoss(objectives, coefficient)


def _objective(config: PreferenceLossConfig, kind: Kind) -> PreferenceObjective:
    return PreferenceObjective(
        kind=kind,
        beta=config.beta,
        label_smoothing=config.label_smoothing if kind in SMOOTHED else 0.0,
        reference_free=config.reference_free,
        length_normalised=None if kind in PLAIN_SUMS else config.length_normalised,
        target_margin=config.simpo_margin,
        temperature=config.discopop_temperature,
        alpha=config.simpo_alpha,
        divergence=config.divergence,
        divergence_alpha=config.divergence_alpha,
    )


class PairTask(PreferenceTask[PairRow]):
    """Batches of pairs, the chosen answer before the rejected one."""

    def __init__(
        self,
        config: PreferenceLossConfig,
        train: Loaded[PairRow],
        held_out: Loaded[PairRow] | None,
        rows_per_step: int,
    ) -> None:
        super().__init__(train, held_out, rows_per_step)
        self._loss = pair_loss(config)
        self.loss, self.needs_reference = self._loss, self._loss.needs_reference
        self._desensitisation = config.length_desensitisation
        self._reference: dict[bool, Float64[np.ndarray, "rows 2"]] = {}

    def _answers(self, rows: Sequence[PairRow]) -> list[Answer]:
        return [answer for row in rows for answer in row.answers(self._desensitisation)]

    def _read_reference(self, rows: Sequence[PairRow], reference: ReferenceLogprobs, training: bool) -> None:
        name = "training answers" if training else "held-out answers"
        self._reference[training] = reference.sums(name, self._answers(rows)).reshape(-1, 2)

    def _batch(self, rows: Sequence[PairRow], training: bool) -> TrainingBatch:
        answers = self._answers(rows)
        batch = answers_batch(answers)
        groups = np.repeat(np.arange(len(rows), dtype=np.int32), 2)
        ranks = np.tile(np.array([0, 1], np.int32), len(rows))
        columns = {"written": token_shares(answers)}
        row_columns = {"weight": column(1 / len(rows), len(answers)), "group": groups, "rank": ranks}
        if self.needs_reference:
            row_columns["reference_logprobs"] = self._reference[training][[row.number for row in rows]].reshape(-1)
        if self._loss.nll_coefficient:
            chosen = torch.from_numpy(np.repeat(ranks == 0, batch.response_lengths))
            offsets = torch.from_numpy(batch.response_offsets)
            columns["nll_weight"] = token_weights("token_mean", chosen, offsets).numpy()
        coupled = [objective for objective, _ in self._loss.objectives if objective.is_coupled]
        if coupled:
            policy = summed(self._logprobs(batch), answers)
            pairs = _pairs(policy, row_columns.get("reference_logprobs", np.zeros_like(policy)), answers)
            for objective in coupled:
                sides = self._statistics(objective, pairs, training)
                row_columns[f"{objective.kind}_statistic"] = torch.stack(sides, 1).flatten().numpy()
        return TrainingBatch(batch, columns, row_columns, groups)

    def _statistics(
        self, objective: PreferenceObjective, pairs: Pairs, training: bool
    ) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """What a coupled loss must know of the whole step, for the chosen and for the rejected answers."""
        if objective.kind == "aot":
            found = aot_statistic(pairs.chosen, pairs.rejected, pairs.reference_chosen, pairs.reference_rejected)
            return found, found
        chosen, rejected = objective.log_ratios(pairs)
        if objective.kind == "aot_unpaired":
            return aot_unpaired_statistics(chosen, rejected)
        shift = torch.full_like(chosen, self._shift(objective.beta * torch.cat([chosen, rejected]), training))
        return shift, shift


def _pairs(policy: np.ndarray, reference: np.ndarray, answers: Sequence[Answer]) -> Pairs:
    """Sums of answers, chosen and rejected by turns, as pairs; in float64, as the driver can afford it."""
    counted = [len(a.response_ids) if a.shares is None else np.count_nonzero(a.shares) for a in answers]
    (chosen, rejected), (reference_chosen, reference_rejected), (chosen_lengths, rejected_lengths) = (
        torch.from_numpy(np.asarray(values, np.float64)).reshape(-1, 2).unbind(1)
        for values in (policy, reference, counted)
    )
    return Pairs(chosen, rejected, reference_chosen, reference_rejected, chosen_lengths, rejected_lengths)

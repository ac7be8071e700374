"""Optimizer steps over single answers that are desirable or not: KTO, unpaired APO and BCO."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64

from rlhf_ray.algorithms.preference_losses import KTOLoss, kto_baseline
from rlhf_ray.config.jobs.dpo import PreferenceLossConfig
from rlhf_ray.data.loading import Loaded
from rlhf_ray.data.preferences import LabelledRow, answers_batch, token_shares
from rlhf_ray.jobs.supervised.loop import TrainingBatch
from rlhf_ray.jobs.supervised.preferences import PreferenceTask, column
from rlhf_ray.jobs.supervised.reference import ReferenceLogprobs, summed

SIDES = ("chosen", "rejected")


class LabelledTask(PreferenceTask[LabelledRow]):
    """Batches of labelled answers; for KTO the policy also reads each prompt with another row's answer."""

    def __init__(
        self,
        kind: Literal["kto", "apo_zero_unpaired", "bco"],
        config: PreferenceLossConfig,
        train: Loaded[LabelledRow],
        held_out: Loaded[LabelledRow] | None,
        rows_per_step: int,
    ) -> None:
        super().__init__(train, held_out, rows_per_step)
        self._loss = KTOLoss(config.beta, config.desirable_weight, config.undesirable_weight, kind)
        self.loss, self.needs_reference = self._loss, True
        self._reference: dict[bool, Float64[np.ndarray, " rows"]] = {}
        self._mismatched: dict[bool, Float64[np.ndarray, " rows"]] = {}

    def report(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics of the desirable as means over them, and of the undesirable likewise."""
        metrics = dict(sums)
        share = metrics.pop("count/chosen")
        for side, part in zip(SIDES, (share, 1 - share), strict=True):
            for name in ("rewards", "logps"):
                total = metrics.pop(f"{name}/{side}")
                if part > 1e-6:
                    metrics[f"{name}/{side}"] = total / part
        if {"rewards/chosen", "rewards/rejected"} <= metrics.keys():
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return metrics

    def _read_reference(self, rows: Sequence[LabelledRow], reference: ReferenceLogprobs, training: bool) -> None:
        which = "training" if training else "held-out"
        self._reference[training] = reference.sums(f"{which} answers", [row.answer for row in rows])
        if self._loss.kind == "kto":
            self._mismatched[training] = reference.sums(f"mismatched {which} answers", [row.mismatch for row in rows])

    def _batch(self, rows: Sequence[LabelledRow], training: bool) -> TrainingBatch:
        answers = [row.answer for row in rows]
        batch, numbers = answers_batch(answers), [row.number for row in rows]
        reference = self._reference[training][numbers]
        row_columns = {
            "weight": column(1 / len(rows), len(rows)),
            "desirable": np.array([row.desirable for row in rows]),
            "reference_logprobs": reference,
        }
        if self._loss.kind == "kto":
            mismatches = [row.mismatch for row in rows]
            policy = summed(self._logprobs(answers_batch(mismatches)), mismatches)
            baseline = kto_baseline(torch.from_numpy(policy), torch.from_numpy(self._mismatched[training][numbers]))
            row_columns["kto_statistic"] = column(float(baseline), len(rows))
        if self._loss.kind == "bco":
            policy = summed(self._logprobs(batch), answers)
            rewards = self._loss.beta * torch.from_numpy(policy - reference)
            row_columns["bco_statistic"] = column(self._shift(rewards, training), len(rows))
        return TrainingBatch(batch, {"written": token_shares(answers)}, row_columns)

"""What each optimizer step of `rlhf dpo` gives its loss: columns of pairs, or of single answers with labels."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, Literal, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.preference_losses import (
    KTOLoss,
    PreferenceLoss,
    aot_statistic,
    aot_unpaired_statistics,
    kto_baseline,
)
from rlhf_ray.algorithms.preferences import PairLossName, Pairs, PreferenceObjective
from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.algorithms.segments import row_index
from rlhf_ray.config.preferences import PLAIN_SUMS, SMOOTHED, WITH_LIKELIHOOD, PreferenceLossConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.loading import Loaded
from rlhf_ray.data.preferences import Answer, LabelledRow, PairRow, answers_batch, token_shares
from rlhf_ray.jobs.supervised.loop import SupervisedTask, TrainingBatch
from rlhf_ray.jobs.supervised.reference import Model, ReferenceLogprobs, summed
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup
from rlhf_ray.tracking.tracker import Tracker

Example = TypeVar("Example")
ReferenceOf = Callable[[TrainerGroup, Callable[[str], None]], ReferenceLogprobs]
"""Makes the reference from the policy as it was loaded; takes words for the person who watches too."""


class PreferenceTask(SupervisedTask[Example]):
    """Batches, columns and metrics of one kind of preferences, for training rows and for rows kept aside."""

    kind = "policy"
    needs_reference: bool
    reference_of: ReferenceOf | None = None

    def __init__(self, train: Loaded[Example], held_out: Loaded[Example] | None, rows_per_step: int) -> None:
        """Take the rows of both data sets, and how many of them make an optimizer step."""
        super().__init__(train, held_out)
        self._rows_per_step = rows_per_step
        self._policy: Model | None = None
        self._moments = RunningMoments()

    def begin(self, trainer: TrainerGroup, tracker: Tracker) -> None:
        """Read the log-probabilities of all rows under the reference, where the loss has one."""

        def policy(batch: TokenBatch) -> np.ndarray:
            return trainer.logprobs(SharedBatch.put(batch))["logprobs"]

        asked = self.reference_of if self.needs_reference else None
        tracker.progress(0, "score")
        self.start_from(policy, asked(trainer, tracker.message) if asked is not None else None)

    def start_from(self, policy: Model, reference: ReferenceLogprobs | None) -> None:
        """Give the policy, for first passes over a step, and get the reference's log-probabilities of all rows.

        Args:
            policy: as it is whenever it is called.
            reference: None if the loss has none.
        """
        self._policy = policy
        if reference is not None:
            self._read_reference(self.train.rows, reference, training=True)
            if self.held_out is not None:
                self._read_reference(self.held_out.rows, reference, training=False)

    def batch(self, rows: Sequence[Example]) -> TrainingBatch:
        """Make one optimizer step of some training rows."""
        return self._batch(rows, training=True)

    def evaluate(self, trainer: TrainerGroup, rows: Sequence[Example]) -> dict[str, float]:
        """Return loss and metrics of rows kept aside, as the mean of steps of the training's size."""
        totals: dict[str, float] = {}
        for start in range(0, len(rows), self._rows_per_step):
            part = rows[start : start + self._rows_per_step]
            for name, value in self._evaluate(part).items():
                totals[name] = totals.get(name, 0.0) + value * len(part) / len(rows)
        return self.report(totals)

    def state(self) -> dict[str, Any]:
        """Return the running mean of rewards, for a checkpoint."""
        return asdict(self._moments)

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint's running mean."""
        self._moments = RunningMoments(**state)

    @abstractmethod
    def _read_reference(self, rows: Sequence[Example], reference: ReferenceLogprobs, training: bool) -> None:
        """Keep the reference's log-probabilities of a data set."""

    @abstractmethod
    def _batch(self, rows: Sequence[Example], training: bool) -> TrainingBatch:
        """Make batch and columns of some rows of a data set."""

    def _evaluate(self, rows: Sequence[Example]) -> dict[str, float]:
        batch = self._batch(rows, training=False)
        columns = {name: torch.from_numpy(values) for name, values in {**batch.columns, **batch.row_columns}.items()}
        columns["rows"] = row_index(torch.from_numpy(batch.tokens.response_offsets))
        logprobs = torch.from_numpy(self._logprobs(batch.tokens))
        value, metrics = self.loss({"logprobs": logprobs}, columns)
        return {"loss": float(value), **{name: float(metric) for name, metric in metrics.items()}}

    def _logprobs(self, batch: TokenBatch) -> Float32[np.ndarray, " response_tokens"]:
        """Compute the policy's log-probabilities as it now is."""
        if self._policy is None:
            raise RuntimeError("preferences: call start_from first")
        return self._policy(batch)

    def _shift(self, rewards: torch.Tensor, training: bool) -> float:
        """Average all rewards seen in training, these included if they belong to it (BCO, Jung et al. 2024)."""
        if training:
            self._moments = self._moments.update(rewards)
        return self._moments.mean


def column(value: float, rows: int) -> Float32[np.ndarray, " rows"]:
    """Repeat a value for each row."""
    return np.full(rows, value, np.float32)


def pair_loss(config: PreferenceLossConfig) -> PreferenceLoss:
    """Return the losses of a config, weighed, with their likelihood term."""
    weights = config.weights or [1.0] * len(config.type)
    coefficient = config.nll_coefficient
    if coefficient is None:
        coefficient = 1.0 if WITH_LIKELIHOOD.intersection(config.type) else 0.0
    # Losses of single answers never come here.
    kinds = cast(list[PairLossName], config.type)
    objectives = tuple((_objective(config, kind), weight) for kind, weight in zip(kinds, weights, strict=True))
    return PreferenceLoss(objectives, coefficient)


def _objective(config: PreferenceLossConfig, kind: PairLossName) -> PreferenceObjective:
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
        """Compute what a coupled loss must know of the whole step, for chosen and for rejected answers."""
        if objective.kind == "aot":
            found = aot_statistic(pairs.chosen, pairs.rejected, pairs.reference_chosen, pairs.reference_rejected)
            return found, found
        chosen, rejected = objective.log_ratios(pairs)
        if objective.kind == "aot_unpaired":
            return aot_unpaired_statistics(chosen, rejected)
        shift = torch.full_like(chosen, self._shift(objective.beta * torch.cat([chosen, rejected]), training))
        return shift, shift


def _pairs(policy: np.ndarray, reference: np.ndarray, answers: Sequence[Answer]) -> Pairs:
    """Sum answers, chosen and rejected by turns, as pairs; in float64, as the driver can afford it."""
    counted = [len(a.response_ids) if a.shares is None else np.count_nonzero(a.shares) for a in answers]
    (chosen, rejected), (reference_chosen, reference_rejected), (chosen_lengths, rejected_lengths) = (
        torch.from_numpy(np.asarray(values, np.float64)).reshape(-1, 2).unbind(1)
        for values in (policy, reference, counted)
    )
    return Pairs(chosen, rejected, reference_chosen, reference_rejected, chosen_lengths, rejected_lengths)


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
        """Return metrics of the desirable as means over them, and of the undesirable likewise."""
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

"""Preference losses over micro-batches: token log-probabilities summed by row, rows paired, objectives weighed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from rlhf_ray.algorithms.losses import Metrics, weighted_metrics, weighted_sum, where_weighted
from rlhf_ray.algorithms.preferences import Pairs, PairValues, PreferenceObjective
from rlhf_ray.algorithms.ranking import ordered_pairs
from rlhf_ray.algorithms.segments import row_sums
from rlhf_ray.algorithms.shapes import check_shapes


def summed_logprobs(
    logprobs: Float[Tensor, " tokens"], columns: Mapping[str, Tensor], count: int
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Sum the log-probabilities of each row's written tokens, and count those tokens; in float64.

    A float32 holds the sum of a thousand tokens to some 1e-4 nats only, and it is of differences of such sums that the
    losses are made.
    """
    written = columns["written"].double()
    kept = where_weighted(written, logprobs.double()) * written
    lengths = row_sums((written != 0).double(), columns["rows"], count)
    return row_sums(kept, columns["rows"], count), lengths


@dataclass(frozen=True)
class PreferenceLoss:
    """Weighted sum of objectives of the DPO family over pairs, and a term that keeps the chosen likely.

    Token columns: `rows`, `written` (1 for tokens of the response that count, or a share, as LD-DPO gives);
    `nll_weight` if there is an NLL term, as `token_weights` makes it, 0 for rejected rows.
    Row columns: `group` (id of the pair), `rank` (0 chosen, 1 rejected), `weight` (of the pair, on both of its rows),
    `reference_logprobs` (summed like the policy's) unless no objective needs it, and `KIND_statistic` for each coupled
    objective (see `preference_statistics`). Both rows of a pair must be in one micro-batch.
    """

    objectives: tuple[tuple[PreferenceObjective, float], ...] = ((PreferenceObjective(), 1.0),)
    """Objectives and their weights. Metrics of rewards take the first one's beta."""
    nll_coefficient: float = 0.0
    """Weight of the negative log-likelihood of the chosen responses (RPO, CPO, ORPO)."""
    needs_entropy: ClassVar[bool] = False

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `logprobs` [tokens]."""
        row_weight = columns["weight"]
        logprobs, lengths = summed_logprobs(outputs["logprobs"], columns, len(row_weight))
        above = ordered_pairs(columns["group"], columns["rank"])
        # Each row meets its rejected partner; rows that have none (the rejected, stand-ins) meet row 0 with weight 0.
        partner = above.int().argmax(1)
        weight = torch.where(above.any(1), row_weight, 0.0)
        total = logprobs.new_zeros(())
        reference = columns["reference_logprobs"] if self.needs_reference else torch.zeros_like(logprobs)
        for objective, share in self.objectives:
            statistic = columns[f"{objective.kind}_statistic"] if objective.is_coupled else None
            pairs = _pair_up(logprobs, reference, lengths, statistic, partner, weight)
            total = total + share * weighted_sum(weight, objective(pairs))
        metrics = {"loss/preference_avg": total.detach(), **self._metrics(logprobs, reference, partner, weight)}
        if self.nll_coefficient:
            nll_weight = columns["nll_weight"]
            nll = -weighted_sum(nll_weight, where_weighted(nll_weight, outputs["logprobs"]))
            total = total + self.nll_coefficient * nll
            metrics["nll_loss"] = nll.detach()
        return total, metrics

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probabilities matter to any objective."""
        return any(objective.needs_reference for objective, _ in self.objectives)

    def _metrics(self, logprobs: Tensor, reference: Tensor, partner: Tensor, weight: Tensor) -> Metrics:
        """Return metrics under TRL's names; rewards are beta times the log-ratio of sums, whatever the objective."""
        chosen = self.objectives[0][0].beta * (logprobs - reference)
        rejected = chosen[partner]
        seen = {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": chosen > rejected,
            "rewards/margins": chosen - rejected,
            "logps/chosen": logprobs,
            "logps/rejected": logprobs[partner],
        }
        return weighted_metrics(weight, {name: where_weighted(weight, value) for name, value in seen.items()})


def _pair_up(
    logprobs: Tensor, reference: Tensor, lengths: Tensor, statistic: Tensor | None, partner: Tensor, weight: Tensor
) -> Pairs:
    def of_chosen(values: Tensor) -> Tensor:
        return where_weighted(weight, values)

    def of_rejected(values: Tensor) -> Tensor:
        return where_weighted(weight, values[partner])

    return Pairs(
        chosen=of_chosen(logprobs),
        rejected=of_rejected(logprobs),
        reference_chosen=of_chosen(reference),
        reference_rejected=of_rejected(reference),
        chosen_lengths=of_chosen(lengths),
        rejected_lengths=of_rejected(lengths),
        chosen_statistic=None if statistic is None else of_chosen(statistic),
        rejected_statistic=None if statistic is None else of_rejected(statistic),
    )


@dataclass(frozen=True)
class KTOLoss:
    """Losses of single responses that are desirable or not (Ethayarajh et al. 2024; Jung et al. 2024).

    With reward u = beta x log-ratio, for desirable and undesirable responses:

    - `kto`: w_d (1 - s(u - z)) and w_u (1 - s(z - u)), z = beta x z0.
    - `apo_zero_unpaired`: 1 - s(u) and s(u), which has no z0.
    - `bco`: -log s(u - shift) and -log s(shift - u).

    Token columns: `rows`, `written`. Row columns: `weight`, `desirable`, `reference_logprobs` (summed), and for kto
    `kto_statistic`, z0 of the step (`kto_baseline`), for bco `bco_statistic`, the mean reward.

    Metrics of `chosen` and `rejected` are sums over the desirable and the undesirable; `count/chosen` is the share of
    the desirable.
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    kind: Literal["kto", "apo_zero_unpaired", "bco"] = "kto"
    needs_entropy: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0:
            raise ValueError(f"beta must be above 0, or nothing is learned: {self.beta}")

    @property
    def is_coupled(self) -> bool:
        """Whether the loss of a response depends on others, through a statistic of a first pass over the step."""
        return self.kind != "apo_zero_unpaired"

    def __call__(self, outputs: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> tuple[Tensor, Metrics]:
        """See `Loss`. `outputs` holds `logprobs` [tokens]."""
        weight, desirable = columns["weight"], columns["desirable"].bool()
        logprobs, _ = summed_logprobs(outputs["logprobs"], columns, len(weight))
        reward = self.beta * where_weighted(weight, logprobs - columns["reference_logprobs"])
        baseline = torch.zeros_like(reward)
        if self.is_coupled:
            baseline = where_weighted(weight, columns[f"{self.kind}_statistic"].to(reward.dtype))
        if self.kind == "kto":
            baseline = self.beta * baseline
        advantage = torch.where(desirable, reward - baseline, baseline - reward)
        doubt = -F.logsigmoid(advantage) if self.kind == "bco" else F.sigmoid(-advantage)
        loss = weighted_sum(
            weight, torch.where(desirable, self.desirable_weight * doubt, self.undesirable_weight * doubt)
        )
        seen = {
            "rewards/chosen": torch.where(desirable, reward, 0.0),
            "rewards/rejected": torch.where(desirable, 0.0, reward),
            "logps/chosen": torch.where(desirable, where_weighted(weight, logprobs), 0.0),
            "logps/rejected": torch.where(desirable, 0.0, where_weighted(weight, logprobs)),
            "count/chosen": desirable,
        }
        if self.kind == "kto":
            seen["kl"] = baseline / self.beta
        return loss, {"loss": loss.detach(), **weighted_metrics(weight, seen)}


@check_shapes
def aot_statistic(
    chosen: PairValues, rejected: PairValues, reference_chosen: PairValues, reference_rejected: PairValues
) -> PairValues:
    """Return, for each pair, the reference's difference of the same rank as the policy's own among the pairs of the
    step.
    """
    return _of_equal_rank(chosen - rejected, reference_chosen - reference_rejected)


@check_shapes
def aot_unpaired_statistics(chosen: PairValues, rejected: PairValues) -> tuple[PairValues, PairValues]:
    """Return, for each chosen log-ratio, the rejected one of equal rank, and the other way round."""
    return _of_equal_rank(chosen, rejected), _of_equal_rank(rejected, chosen)


@check_shapes
def kto_baseline(logprobs: Float[Tensor, " n"], reference: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return KTO's z0: mean log-ratio of mismatched prompts and responses, at least 0 (Ethayarajh et al. 2024).

    Args:
        logprobs: the policy's summed log-probabilities of responses to other rows' prompts.
        reference: those of the reference.
    """
    return (logprobs - reference).mean().clamp(min=0)


def _of_equal_rank(own: PairValues, other: PairValues) -> PairValues:
    """Find for each element of `own` the element of `other` that has its rank."""
    result = torch.empty_like(other)
    result[own.argsort()] = other.sort().values
    return result

"""Every loss with an optimizer step of its own: ragged rows, gaps, rows without weight, ties."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.clip_preferences import ClipPreferenceLoss
from rlhf_ray.algorithms.kl import KLTerm
from rlhf_ray.algorithms.losses import ClippedValueLoss, Loss, NegativeLogLikelihood
from rlhf_ray.algorithms.policy_losses import CISPOLoss, ClippedPolicyLoss, GSPOLoss, SAPOLoss
from rlhf_ray.algorithms.preference_losses import KTOLoss, PreferenceLoss
from rlhf_ray.algorithms.preferences import COUPLED, PairLossName, PreferenceObjective
from rlhf_ray.algorithms.ranking import CostLoss, RankingLoss, ranking_weights
from rlhf_ray.algorithms.segments import row_index, row_sums

GROUPS = torch.tensor([0, 0, 1, 1, 1, 2, 2, 3, 3])
RANKS = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0])
LENGTHS = torch.tensor([3, 1, 4, 2, 5, 1, 3, 6, 2])


@dataclass
class Batch:
    """One optimizer step: outputs and columns of tokens and of rows."""

    lengths: Tensor
    tokens: dict[str, Tensor]
    rows: dict[str, Tensor]
    outputs: dict[str, Tensor]
    token_outputs: bool = True

    def run(self, loss: Loss, chosen: list[int] | None = None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Loss, metrics and gradient of the first output, on some rows only if given."""
        chosen = list(range(len(self.lengths))) if chosen is None else chosen
        offsets = torch.cat([torch.zeros(1).long(), self.lengths.cumsum(0)])
        flat = torch.cat([torch.arange(offsets[r], offsets[r + 1]) for r in chosen])
        index = torch.tensor(chosen)
        columns = {name: value[flat] for name, value in self.tokens.items()}
        columns |= {name: value[index] for name, value in self.rows.items()}
        columns["rows"] = row_index(torch.cat([torch.zeros(1).long(), self.lengths[index].cumsum(0)]))
        leaf = next(iter(self.outputs.values())).clone().requires_grad_(True)
        given = dict(self.outputs) | {next(iter(self.outputs)): leaf}
        where = flat if self.token_outputs else index
        value, metrics = loss({name: output[where] for name, output in given.items()}, columns)
        (grad,) = torch.autograd.grad(value, leaf)
        return value.detach(), metrics, grad


def policy_batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    tokens = int(LENGTHS.sum())
    offsets = torch.cat([torch.zeros(1).long(), LENGTHS.cumsum(0)])
    learned = torch.rand(tokens) > 0.25
    learned[offsets[1] : offsets[2]] = False
    old = -torch.rand(tokens, dtype=dtype) * 3
    return Batch(
        LENGTHS,
        {
            "weight": token_weights("token_mean", learned, offsets, dtype=dtype),
            "old_logprobs": old,
            "reference_logprobs": old + 0.3 * torch.randn(tokens, dtype=dtype),
            "advantages": torch.randn(tokens, dtype=dtype),
            "importance_weights": torch.rand(tokens, dtype=dtype),
            "old_values": torch.randn(tokens, dtype=dtype),
            "returns": torch.randn(tokens, dtype=dtype),
        },
        {},
        {
            "logprobs": old + 0.3 * torch.randn(tokens, dtype=dtype),
            "entropy": torch.rand(tokens, dtype=dtype),
            "values": torch.randn(tokens, dtype=dtype),
        },
    )


def critic_batch(dtype: torch.dtype = torch.float64) -> Batch:
    batch = policy_batch(dtype)
    batch.outputs = {"values": batch.outputs["values"]}
    return batch


def score_batch(dtype: torch.dtype = torch.float64) -> Batch:
    torch.manual_seed(1)
    rows = {
        "weight": ranking_weights(GROUPS, RANKS, dtype=dtype),
        "group": GROUPS,
        "rank": RANKS,
        "margin": torch.rand(len(GROUPS), dtype=dtype),
        "sign": torch.where(torch.rand(len(GROUPS)) > 0.5, 1, -1),
    }
    return Batch(LENGTHS, {}, rows, {"scores": torch.randn(len(GROUPS), dtype=dtype)}, token_outputs=False)


def choice_batch(dtype: torch.dtype = torch.float64) -> Batch:
    """Choices between two clips: either side, both, and one that does not count."""
    torch.manual_seed(4)
    count = len(LENGTHS)
    rows = {
        "weight": torch.tensor([1, 2, 1, 0, 3, 1, 1, 2, 1], dtype=dtype) / 12,
        "left_share": torch.tensor([1, 0, 0.5, 1, 0, 1, 0, 0.5, 1], dtype=dtype),
    }
    outputs = {"left": 3 * torch.randn(count, dtype=dtype), "right": 3 * torch.randn(count, dtype=dtype)}
    return Batch(LENGTHS, {}, rows, outputs, token_outputs=False)


def pair_batch(dtype: torch.dtype = torch.float64) -> Batch:
    """Four pairs; the last has no weight."""
    torch.manual_seed(2)
    lengths = LENGTHS[:8]
    offsets = torch.cat([torch.zeros(1).long(), lengths.cumsum(0)])
    tokens, rows = int(lengths.sum()), row_index(offsets)
    written = torch.rand(tokens) > 0.2
    written[offsets[:-1]] = True
    rank, weight = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1]), torch.tensor([1, 1, 1, 1, 1, 1, 0, 0], dtype=dtype) / 3
    logprobs = -torch.rand(tokens, dtype=dtype) * 2
    reference = row_sums((logprobs + 0.5 * torch.randn(tokens, dtype=dtype)) * written, rows, 8)
    learned = written & (rank == 0)[rows] & (weight > 0)[rows]
    columns = {"written": written.to(dtype), "nll_weight": token_weights("token_mean", learned, offsets, dtype=dtype)}
    row_columns = {
        "weight": weight,
        "group": torch.arange(4).repeat_interleave(2),
        "rank": rank,
        "reference_logprobs": reference,
        "desirable": rank == 0,
        "kto_statistic": torch.full((8,), 0.3, dtype=dtype),
        **{f"{kind}_statistic": 0.1 * torch.randn(8, dtype=dtype) for kind in COUPLED},
    }
    return Batch(lengths, columns, row_columns, {"logprobs": logprobs})


@dataclass(frozen=True)
class Subject:
    """A loss, its batch, and rows that must stay together."""

    loss: Loss
    batch: Callable[..., Batch]
    splits: tuple = field(default=([0, 3], [1], [2, 8, 4], [5, 6, 7]))


BY_GROUP = ([2, 3, 4], [7, 0, 8, 1], [5, 6])
BY_PAIR = ([4, 5], [2, 3, 0, 1], [7, 6])


def objective(kind: str, **settings: float) -> PreferenceObjective:
    return PreferenceObjective(kind, label_smoothing=0.1, **settings)


SUBJECTS: dict[str, Subject] = {
    "ppo": Subject(ClippedPolicyLoss(0.2, 0.28, 3.0), policy_batch),
    "ppo_entropy_kl": Subject(ClippedPolicyLoss(entropy_coefficient=0.01, kl=KLTerm(0.05, "k3+")), policy_batch),
    "ppo_sequence": Subject(ClippedPolicyLoss(level="sequence"), policy_batch),
    "gspo_token": Subject(GSPOLoss(0.1, 0.1), policy_batch),
    "gspo_sequence": Subject(GSPOLoss(0.1, 0.1, gradient="sequence"), policy_batch),
    "cispo": Subject(CISPOLoss(0.2, 0.2), policy_batch),
    "sapo": Subject(SAPOLoss(), policy_batch),
    "ppo_kl_by_ratio": Subject(ClippedPolicyLoss(0.2, 0.28, kl=KLTerm(0.1, "k3", "ratio")), policy_batch),
    "value": Subject(ClippedValueLoss(), critic_batch),
    "value_unclipped": Subject(ClippedValueLoss(None), critic_batch),
    "sft": Subject(NegativeLogLikelihood(), policy_batch),
    "ranking": Subject(RankingLoss(centering_coefficient=0.01), score_batch, BY_GROUP),
    "ranking_sigmoid": Subject(RankingLoss("sigmoid"), score_batch, BY_GROUP),
    "clips": Subject(ClipPreferenceLoss(), choice_batch),
    "cost": Subject(CostLoss(), score_batch, BY_GROUP),
    "kto": Subject(KTOLoss(desirable_weight=1.3), pair_batch, ([0], [1, 5, 2], [3, 4, 6, 7])),
    "bco_unpaired": Subject(KTOLoss(kind="bco"), pair_batch, ([0], [1, 5, 2], [3, 4, 6, 7])),
    "several": Subject(
        PreferenceLoss(((objective("sigmoid"), 0.8), (objective("bco"), 0.2)), 0.5), pair_batch, BY_PAIR
    ),
    **{
        kind: Subject(PreferenceLoss(((objective(kind), 1.0),)), pair_batch, BY_PAIR) for kind in get_args(PairLossName)
    },
}

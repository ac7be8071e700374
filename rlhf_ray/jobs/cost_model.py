"""Cost models, a task of `rlhf reward`: the less safe of two answers costs more, and what is safe costs less than 0."""

from collections.abc import Sequence

import torch

from rlhf_ray.algorithms.cost_models import CostLoss
from rlhf_ray.algorithms.ranking import ranking_weights
from rlhf_ray.config.supervised import CostModelConfig, RewardTrainingConfig
from rlhf_ray.data.cost_pairs import CostPair, read_cost_pairs, signs_of
from rlhf_ray.data.rows import ranked_batch
from rlhf_ray.jobs.model_checks import check_supervised, job_tokenizer
from rlhf_ray.jobs.supervised import Lesson, Task, learn
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup


def learn_costs(config: RewardTrainingConfig, cost: CostModelConfig) -> None:
    """Train a cost model from pairs with safety labels (Dai et al. 2024)."""
    tokenizer = job_tokenizer(config.model)
    check_supervised(config, tokenizer)
    loss = CostLoss(cost.sign_coefficient, cost.regularisation)

    def evaluate(trainer: TrainerGroup, pairs: Sequence[CostPair]) -> dict[str, float]:
        taught = lesson(pairs)
        costs = torch.from_numpy(trainer.scores(SharedBatch.put(taught.batch)))
        columns = {name: torch.from_numpy(column) for name, column in taught.row_columns.items()}
        _, found = loss({"scores": costs}, columns)
        return {name: float(value) for name, value in found.items()} | {"mean_cost": float(costs.mean())}

    learn(
        config,
        Task(
            kind="reward",
            loss=loss,
            train=read_cost_pairs(config.data, tokenizer),
            held_out=read_cost_pairs(config.evaluation_data, tokenizer) if config.evaluation_data else None,
            lesson=lesson,
            evaluate=evaluate,
        ),
    )


def lesson(pairs: Sequence[CostPair]) -> Lesson:
    """One optimizer step's pairs, each of the same weight; both texts of a pair stay in one micro-batch."""
    ranked = ranked_batch([pair.ranking for pair in pairs])
    groups, ranks = torch.from_numpy(ranked.groups), torch.from_numpy(ranked.ranks)
    return Lesson(
        ranked.batch,
        row_columns={
            "weight": ranking_weights(groups, ranks, "pairs").numpy(),
            "group": ranked.groups,
            "rank": ranked.ranks,
            "sign": signs_of(pairs),
        },
        groups=ranked.groups,
    )

"""`rlhf reward`: a reward model from pairs or rank lists, or an ensemble of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from rlhf_ray.algorithms.ranking import CostLoss, RankingLoss, ranking_weights
from rlhf_ray.config.jobs.supervised import CostModelConfig, RewardTrainingConfig
from rlhf_ray.data.cost_pairs import CostPair, read_cost_pairs, signs_of
from rlhf_ray.data.loading import Loaded, read_rankings
from rlhf_ray.data.rows import RankedRow, ranked_batch
from rlhf_ray.jobs.supervised.ensemble import REPORT_FILE, Member, judge, member_configs, members_of, ranking_metrics
from rlhf_ray.jobs.supervised.loop import SupervisedTask, TrainingBatch, learn, learned_before
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.roles.trainer import SharedBatch, TrainerGroup
from rlhf_ray.runs.folder import RunFolder
from rlhf_ray.runs.model_checks import check_supervised

STATISTICS_TEXTS = 4096
"""Training texts whose scores the statistics describe: more move a median by less than a run's noise."""


def run(config: RewardTrainingConfig) -> None:
    """Learn scores whose differences explain the rankings (Bradley and Terry), once for each member; or costs."""
    if all(learned_before(member) for member in member_configs(config)) and _is_judged(config):
        return
    tokenizer = check_supervised(config)
    if config.cost is not None:
        kept = read_cost_pairs(config.evaluation_data, tokenizer) if config.evaluation_data else None
        learn(config, CostTask(config.cost, read_cost_pairs(config.data, tokenizer), kept))
        return
    train = read_rankings(config.data, tokenizer)
    held_out = read_rankings(config.evaluation_data, tokenizer) if config.evaluation_data else None
    members = members_of(config, len(train.rows))
    for member in members:
        if not member.is_finished() and not learn(member.config, RankingTask(member.config, train, held_out)):
            return
    if len(members) > 1 and held_out is not None:
        judge(members, held_out.rows, Path(config.output).expanduser())


def _is_judged(config: RewardTrainingConfig) -> bool:
    """Tell whether what the members say together was written, where it is to be."""
    asked = config.members > 1 and config.evaluation_data is not None
    return not asked or (Path(config.output).expanduser() / REPORT_FILE).is_file()


class RankingTask(SupervisedTask[RankedRow]):
    """Scores whose differences explain the rankings of a step."""

    kind = "reward"

    def __init__(
        self, config: RewardTrainingConfig, train: Loaded[RankedRow], held_out: Loaded[RankedRow] | None
    ) -> None:
        super().__init__(train, held_out)
        self._config = config
        self.loss = RankingLoss(kind=config.loss, centering_coefficient=config.centering_coefficient)

    def batch(self, rows: Sequence[RankedRow]) -> TrainingBatch:
        """Keep the texts of a list in one micro-batch; weights by `aggregation`."""
        ranked = ranked_batch(rows)
        groups, ranks = torch.from_numpy(ranked.groups), torch.from_numpy(ranked.ranks)
        weight = ranking_weights(groups, ranks, self._config.aggregation).numpy()
        columns = {"weight": weight, "group": ranked.groups, "rank": ranked.ranks}
        if ranked.grades is not None:
            columns["margin"] = ranked.grades
        return TrainingBatch(ranked.batch, row_columns=columns, groups=ranked.groups)

    def evaluate(self, trainer: TrainerGroup, rows: Sequence[RankedRow]) -> dict[str, float]:
        """Return how well the scores order the texts of each list, and their mean."""
        ranked = ranked_batch(rows)
        scores = torch.from_numpy(_scores(trainer, rows))
        metrics = ranking_metrics(scores, torch.from_numpy(ranked.groups), torch.from_numpy(ranked.ranks))
        return metrics | {"mean_reward": float(scores.mean())}

    def finish(self, trainer: TrainerGroup, folder: RunFolder) -> None:
        """Write how scores lie on training texts, and a member's scores of the rows kept aside."""
        _statistics(trainer, self.train.rows).write(folder.final)
        if self._config.members > 1 and self.held_out is not None:
            np.save(Member.scores_file(folder.path), _scores(trainer, self.held_out.rows))


class CostTask(SupervisedTask[CostPair]):
    """Costs whose differences say which answer is more harmful, and whose signs, which is safe (Dai et al. 2024)."""

    kind = "reward"

    def __init__(self, cost: CostModelConfig, train: Loaded[CostPair], held_out: Loaded[CostPair] | None) -> None:
        super().__init__(train, held_out)
        self.loss = CostLoss(cost.sign_coefficient, cost.regularisation)

    def batch(self, rows: Sequence[CostPair]) -> TrainingBatch:
        """Weigh each pair alike; both texts of a pair stay in one micro-batch."""
        ranked = ranked_batch([pair.ranking for pair in rows])
        groups, ranks = torch.from_numpy(ranked.groups), torch.from_numpy(ranked.ranks)
        return TrainingBatch(
            ranked.batch,
            row_columns={
                "weight": ranking_weights(groups, ranks, "pairs").numpy(),
                "group": ranked.groups,
                "rank": ranked.ranks,
                "sign": signs_of(rows),
            },
            groups=ranked.groups,
        )

    def evaluate(self, trainer: TrainerGroup, rows: Sequence[CostPair]) -> dict[str, float]:
        """Return the loss's own metrics, and the mean cost."""
        batch = self.batch(rows)
        costs = torch.from_numpy(trainer.scores(SharedBatch.put(batch.tokens)))
        columns = {name: torch.from_numpy(column) for name, column in batch.row_columns.items()}
        _, found = self.loss({"scores": costs}, columns)
        return {name: float(value) for name, value in found.items()} | {"mean_cost": float(costs.mean())}


def _scores(trainer: TrainerGroup, rows: Sequence[RankedRow]) -> np.ndarray:
    return trainer.scores(SharedBatch.put(ranked_batch(rows).batch))


def _statistics(trainer: TrainerGroup, rows: Sequence[RankedRow]) -> ScoreStatistics:
    """Say beside the model how its scores lie on training texts."""
    chosen: list[RankedRow] = []
    texts = 0
    for row in rows:
        if texts + len(row.texts) > STATISTICS_TEXTS:
            break
        chosen.append(row)
        texts += len(row.texts)
    return ScoreStatistics.of(_scores(trainer, chosen))

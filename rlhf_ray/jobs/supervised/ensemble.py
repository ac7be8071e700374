"""Members of an ensemble of reward models: a run folder each, and what they say together of rows kept aside."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from rich.console import Console
from torch import Tensor

from rlhf_ray.algorithms.ensembles import disagreement, standardised
from rlhf_ray.algorithms.ranking import ranking_quality
from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig
from rlhf_ray.data.cursor import Passes
from rlhf_ray.data.rows import RankedRow, ranked_batch
from rlhf_ray.models.score_statistics import STATISTICS_FILE, ScoreStatistics

REPORT_FILE = "ensemble.json"


@dataclass(frozen=True)
class Member:
    """One model: its config, and how many steps it takes."""

    config: RewardTrainingConfig
    steps: int

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.output).expanduser().resolve()

    @property
    def final(self) -> Path:
        """Its finished model."""
        return self.folder / "final"

    @staticmethod
    def scores_file(folder: Path) -> Path:
        """Return the file of the scores of rows kept aside, in a member's run folder."""
        return folder / "held_out_scores.npy"

    def is_finished(self) -> bool:
        """Tell whether an earlier start of the same job has made it, so that it need not be loaded again.

        A job of one model says so by itself, see `learned_before`.
        """
        if self.config.members == 1 or not (self.final / STATISTICS_FILE).is_file():
            return False
        if self.config.evaluation_data is not None and not self.scores_file(self.folder).is_file():
            return False
        saved = Checkpoints(str(self.folder / "checkpoints"), self.config.checkpoint.keep).latest()
        return saved is not None and saved.state["step"] == self.steps


def members_of(config: RewardTrainingConfig, rows: int) -> list[Member]:
    """List the members of a job: the first is its own run, the others are below it, each with the next seed."""
    steps = Passes(rows, config.epochs, config.batch_size).steps
    return [Member(one, steps) for one in member_configs(config)]


def member_configs(config: RewardTrainingConfig) -> list[RewardTrainingConfig]:
    """List the config of each member; of a job of one model, its own."""
    return [
        config.model_copy(update={"output": output, "seed": config.seed + place})
        for place, output in enumerate(config.member_outputs)
    ]


def judge(members: Sequence[Member], rows: Sequence[RankedRow], folder: Path) -> None:
    """Write and print how good each member and their mean are on rows kept aside, and how far they disagree."""
    ranked = ranked_batch(rows)
    groups, ranks = torch.from_numpy(ranked.groups), torch.from_numpy(ranked.ranks)
    scores = _standardised(members)
    apart = disagreement(scores, groups, ranks)
    alone = [ranking_metrics(own, groups, ranks) for own in scores]
    together = ranking_metrics(scores.mean(0), groups, ranks)
    report = {
        "members": [{"path": str(member.final), **own} for member, own in zip(members, alone, strict=True)],
        "ensemble": together,
        "disagreement": {"std": float(apart.std), "disputed_pairs": float(apart.disputed_pairs)},
        "rankings": len(rows),
    }
    (folder / REPORT_FILE).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    accuracies = ", ".join(f"{own['accuracy']:.3f}" for own in alone)
    Console().print(
        f"accuracy on {len(rows)} rankings kept aside: members {accuracies}; together "
        f"{together['accuracy']:.3f}; they dispute {apart.disputed_pairs:.1%} of the pairs; "
        f"{folder / REPORT_FILE} has the rest",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _standardised(members: Sequence[Member]) -> Float32[Tensor, "members rows"]:
    statistics = [ScoreStatistics.read(str(member.final)) for member in members]
    scores = np.stack([np.load(Member.scores_file(member.folder)) for member in members])
    means, stds = (torch.tensor([getattr(one, name) for one in statistics]) for name in ("mean", "std"))
    return standardised(torch.from_numpy(scores), means, stds)


def ranking_metrics(scores: Tensor, groups: Tensor, ranks: Tensor) -> dict[str, float]:
    """Return `ranking_quality` by TRL's name for accuracy, and by our own for the others."""
    quality = ranking_quality(scores, groups, ranks)
    return {
        "accuracy": float(quality.pair_accuracy),
        "exact_list_accuracy": float(quality.exact_list_accuracy),
        "kendall_tau": float(quality.kendall_tau),
    }

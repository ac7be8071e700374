"""Advantages of a batch by the estimator that the config names."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.advantages import (
    discounted_returns,
    dr_grpo,
    gae,
    grpo,
    opo,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    remax,
    rloo,
)
from rlhf_ray.algorithms.rewards import token_rewards
from rlhf_ray.algorithms.segments import row_index, row_sums
from rlhf_ray.algorithms.statistics import whiten
from rlhf_ray.config.algorithm import AlgorithmConfig


@dataclass(frozen=True)
class ScoredBatch:
    """A batch whose responses have scores, in flat order."""

    scores: Float[Tensor, " rows"]
    known: Bool[Tensor, " rows"]
    """Rows whose score can be learned from."""
    groups: Int64[Tensor, " rows"]
    """Number of each row's prompt in the batch."""
    kl: Float[Tensor, " tokens"]
    """To the reference; 0 where not written, or unscored."""
    kl_coefficient: float
    """Weight of the penalty in the reward; 0 where the KL is in the loss."""
    written: Bool[Tensor, " tokens"]
    offsets: Int64[Tensor, " rows+1"]
    values: Float[Tensor, " tokens"] | None = None
    """Of the critic."""
    greedy_scores: Float[Tensor, " rows"] | None = None
    """Of the most likely response to each row's prompt."""
    unscored: Bool[Tensor, " tokens"] | None = None
    """Tokens for which the engine that wrote them gave no log-probability. None: there are none."""
    turn_rewards: Float[Tensor, " tokens"] | None = None
    """Parts of the scores that an environment gave for turns, at their last tokens. None: there are none."""

    @property
    def learned(self) -> Bool[Tensor, " tokens"]:
        """Written tokens of the known rows, less those that are unscored."""
        learned = self.written & self.known[row_index(self.offsets)]
        return learned if self.unscored is None else learned & ~self.unscored


def estimate_advantages(
    scored: ScoredBatch, algorithm: AlgorithmConfig
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"] | None]:
    """Estimate advantages, and the returns that a critic learns, where there is one.

    What is not known takes part in no statistic. Estimators that give a response one advantage take the KL penalty of
    the whole response from its score (Ahmadian et al. 2024).
    """
    name = algorithm.advantages
    if name == "gae":
        return _gae(scored, algorithm)
    if name == "reinforce_plus_plus":
        return _reinforce_plus_plus(scored, algorithm), None
    if name == "reinforce_plus_plus_baseline":
        # Already centred, over the known rows alone.
        centred = _of_known(scored, dr_grpo(scored.scores[scored.known], scored.groups[scored.known]))
        correction = 1 if algorithm.whiten_advantages else None
        advantages = reinforce_plus_plus_baseline(
            centred,
            None,
            scored.kl,
            scored.learned,
            scored.offsets,
            scored.kl_coefficient,
            kl_in="return",
            correction=correction,
        )
        return advantages, None
    rows = row_index(scored.offsets)
    scores = scored.scores - scored.kl_coefficient * row_sums(scored.kl, rows, len(scored.scores))
    chosen, groups = scores[scored.known], scored.groups[scored.known]
    if name == "remax":
        if scored.greedy_scores is None:
            raise ValueError("remax needs the scores of greedy responses")
        found = remax(chosen, scored.greedy_scores[scored.known])
    elif name == "opo":
        found = opo(chosen, groups, row_sums(scored.learned.long(), rows, len(scored.scores))[scored.known])
    else:
        found = {"grpo": grpo, "dr_grpo": dr_grpo, "rloo": rloo}[name](chosen, groups)
    learned = scored.learned
    advantages = torch.where(learned, _of_known(scored, found)[rows], 0.0)
    return (whiten(advantages, learned) if algorithm.whiten_advantages else advantages), None


def _gae(scored: ScoredBatch, algorithm: AlgorithmConfig) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    if scored.values is None:
        raise ValueError("gae needs values")
    rewards = _token_rewards(scored, scored.written)
    advantages, returns = gae(
        rewards, scored.values, scored.written, scored.offsets, algorithm.gamma, algorithm.gae_lambda
    )
    return (whiten(advantages, scored.learned) if algorithm.whiten_advantages else advantages), returns


def _reinforce_plus_plus(scored: ScoredBatch, algorithm: AlgorithmConfig) -> Float[Tensor, " tokens"]:
    learned, offsets = scored.learned, scored.offsets
    rewards = _token_rewards(scored, learned)
    if algorithm.whiten_advantages:
        return reinforce_plus_plus(rewards, learned, offsets, algorithm.gamma)[0]
    return discounted_returns(rewards, learned, offsets, algorithm.gamma)


def _token_rewards(scored: ScoredBatch, learned: Bool[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
    """Reward tokens: each turn's last one by what was given for it, the row's last one by what is left of its score.

    So the rewards of a row sum up to its score, whatever normalisation, penalties and other sources made of it.
    """
    scores, turns = scored.scores, scored.turn_rewards
    if turns is None:
        return token_rewards(scores, scored.kl, learned, scored.offsets, scored.kl_coefficient)
    left = scores - row_sums(turns, row_index(scored.offsets), len(scores))
    return token_rewards(left, scored.kl, learned, scored.offsets, scored.kl_coefficient) + turns


def _of_known(scored: ScoredBatch, found: Float[Tensor, " known"]) -> Float[Tensor, " rows"]:
    """Put the numbers of the known rows at their places, 0 elsewhere."""
    rows = torch.zeros_like(scored.scores)
    rows[scored.known] = found
    return rows

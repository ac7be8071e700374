"""Costs of episodes, the multiplier that keeps them under a limit, and advantages that weigh both (safe RLHF)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_ray.algorithms.lagrangian import LagrangeMultiplier, combined_advantages
from rlhf_ray.algorithms.statistics import explained_variance, whiten
from rlhf_ray.config.algorithm import AlgorithmConfig, LagrangianConfig
from rlhf_ray.experience.estimators import ScoredBatch, estimate_advantages

COST_CRITIC_ROLE = "cost_critic"
"""Name of the role that learns the returns of costs."""


@dataclass(frozen=True)
class CostConstraint:
    """Lambda, and the costs of the newest episodes, by whose mean it moves (Dai et al. 2024)."""

    multiplier: LagrangeMultiplier
    window: int
    """Episodes of which the mean is taken."""
    recent: tuple[float, ...] = ()
    """Costs of the newest episodes, the newest last."""

    @classmethod
    def from_config(cls, lagrangian: LagrangianConfig) -> "CostConstraint":
        """Make the constraint as it is at the start of a run."""
        multiplier = LagrangeMultiplier(
            lagrangian.multiplier,
            lagrangian.learning_rate,
            lagrangian.cost_limit,
            lagrangian.maximum,
            lagrangian.delay_steps,
        )
        return cls(multiplier, lagrangian.window)

    @property
    def mean_cost(self) -> float:
        """Return the mean cost of the newest episodes; NaN before the first."""
        return sum(self.recent) / len(self.recent) if self.recent else float("nan")

    def after(self, costs: Sequence[float]) -> "CostConstraint":
        """Return the constraint after a batch of episodes, before the policy learns from them.
        A batch without costs moves nothing.

        A batch of more episodes than the window counts whole.
        """
        if not costs:
            return self
        seen = replace(self, recent=(*self.recent, *costs)[-max(self.window, len(costs)) :])
        return replace(seen, multiplier=self.multiplier.update(seen.mean_cost))

    def state(self) -> dict[str, Any]:
        """Return all that `restored` needs, as JSON can hold it."""
        return {"lambda": self.multiplier.value, "updates": self.multiplier.steps, "recent": list(self.recent)}

    def restored(self, state: dict[str, Any]) -> "CostConstraint":
        """Go on from a state, with the settings of this one."""
        multiplier = replace(self.multiplier, value=state["lambda"], steps=state["updates"])
        return replace(self, multiplier=multiplier, recent=tuple(state["recent"]))


def constraint_of(algorithm: AlgorithmConfig) -> CostConstraint | None:
    """Return the constraint of a run, as at its start; None where costs have no critic."""
    if algorithm.lagrangian is None or not algorithm.has_cost_critic:
        return None
    return CostConstraint.from_config(algorithm.lagrangian)


@dataclass(frozen=True)
class Costs:
    """Costs of a batch by the cost sources, and their values by the critic of costs."""

    scores: Float[Tensor, " rows"]
    """Weighted sum of the cost sources; NaN where one failed."""
    values: Float[Tensor, " tokens"]


@dataclass(frozen=True)
class ConstrainedAdvantages:
    """Targets of the policy and of both critics."""

    advantages: Float[Tensor, " tokens"]
    """(A_reward - lambda A_cost) / (1 + lambda), whitened where the config says so."""
    returns: Float[Tensor, " tokens"]
    cost_returns: Float[Tensor, " tokens"]
    metrics: dict[str, float]


def constrained_advantages(
    scored: ScoredBatch, costs: Costs, constraint: CostConstraint, algorithm: AlgorithmConfig
) -> ConstrainedAdvantages:
    """Estimate two GAEs, one of rewards and one of costs, and weigh them by lambda.

    A KL penalty in the reward is added to the cost likewise, as safe-rlhf does, so that its weight in the sum stays the
    same whatever lambda is. With lambda 0 the advantages are those of the reward alone, bit for bit.
    """
    plain = algorithm.model_copy(update={"whiten_advantages": False})
    known_costs = torch.where(scored.known, costs.scores, 0.0)
    of_costs = replace(
        scored,
        scores=known_costs,
        values=costs.values,
        kl_coefficient=-scored.kl_coefficient,
        turn_rewards=None,
    )
    rewards, returns = estimate_advantages(scored, plain)
    harms, cost_returns = estimate_advantages(of_costs, plain)
    if returns is None or cost_returns is None:
        raise ValueError(f"{algorithm.advantages} has no critic, but costs need one")
    combined = combined_advantages(rewards, harms, constraint.multiplier.value)
    learned = scored.learned
    metrics = {"lambda": constraint.multiplier.value}
    if bool(learned.any()):
        metrics |= {
            "episode_cost": constraint.mean_cost,
            "cost": float(costs.scores[scored.known].mean()),
            "reward_advantage": float(rewards[learned].mean()),
            "cost_advantage": float(harms[learned].mean()),
            "cost_return": float(cost_returns[learned].mean()),
            "cost_value": float(costs.values[learned].mean()),
            "value/cost_explained_variance": float(explained_variance(costs.values, cost_returns, learned)),
        }
    return ConstrainedAdvantages(
        whiten(combined, learned) if algorithm.whiten_advantages else combined, returns, cost_returns, metrics
    )

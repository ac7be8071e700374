"""Generalised advantage estimation on packed rows."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from rlhf_ray.algorithms.rewards import token_rewards
from rlhf_ray.algorithms.segments import backward_recurrence, row_index, row_sums
from rlhf_ray.algorithms.shapes import check_shapes
from rlhf_ray.algorithms.statistics import whiten


@dataclass(frozen=True)
class _Groups:
    """Statistics of each response's group, in float64."""

    scores: Float[Tensor, " rows"]
    size: Float[Tensor, " rows"]
    mean: Float[Tensor, " rows"]
    varied: Bool[Tensor, " rows"]
    """Whether the group's scores differ."""
    index: Int64[Tensor, " rows"]
    count: int

    @classmethod
    def of(cls, scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"]) -> "_Groups":
        _, index = torch.unique(groups, return_inverse=True)
        count = int(index.max()) + 1 if len(index) else 0
        scores = scores.double()
        size = row_sums(torch.ones_like(scores), index, count)
        mean = row_sums(scores, index, count) / size
        highest = torch.full_like(mean, -torch.inf).scatter_reduce(0, index, scores, "amax")
        lowest = torch.full_like(mean, torch.inf).scatter_reduce(0, index, scores, "amin")
        return cls(scores, size[index], mean[index], (highest > lowest)[index], index, count)

    @property
    def centred(self) -> Float[Tensor, " rows"]:
        return torch.where(self.varied, self.scores - self.mean, 0.0)


@check_shapes
def grpo(
    scores: Float[Tensor, " rows"],
    groups: Shaped[Tensor, " rows"],
    scale: Literal["group", "batch"] = "group",
    epsilon: float = 1e-6,
) -> Float[Tensor, " rows"]:
    """Return (score - mean of the group) / (standard deviation + epsilon) for each row (Shao et al. 2024).

    Args:
        scores: of each response.
        groups: id of each response's prompt.
        scale: deviation of the group, or of all scores of the batch, both with Bessel's correction.
        epsilon: verl 1e-6, TRL 1e-4, OpenRLHF 1e-9.
    """
    group = _Groups.of(scores, groups)
    if scale == "group":
        squares = row_sums(group.centred.square(), group.index, group.count)[group.index]
        deviation = (squares / (group.size - 1).clamp(min=1)).sqrt()
    else:
        deviation = group.scores.std() if len(scores) > 1 else torch.ones_like(group.scores)
    return (group.centred / (deviation + epsilon)).to(scores.dtype)


@check_shapes
def dr_grpo(scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Score - mean of the group: GRPO without its division, which favours groups of small spread (Liu et al. 2025)."""
    return _Groups.of(scores, groups).centred.to(scores.dtype)


@check_shapes
def rloo(scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Score - mean of the group's other scores (Kool et al. 2019, Ahmadian et al. 2024)."""
    group = _Groups.of(scores, groups)
    return (group.centred * group.size / (group.size - 1).clamp(min=1)).to(scores.dtype)


@check_shapes
def opo(
    scores: Float[Tensor, " rows"], groups: Shaped[Tensor, " rows"], lengths: Shaped[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Score - mean of the group weighted by length, the baseline of least variance (Hao et al. 2025).

    Args:
        scores: of each response.
        groups: id of each response's prompt.
        lengths: written tokens of each response.
    """
    group = _Groups.of(scores, groups)
    weight = lengths.double()
    total = row_sums(weight, group.index, group.count).clamp(min=1)
    baseline = row_sums(weight * group.scores, group.index, group.count) / total
    return torch.where(group.varied, group.scores - baseline[group.index], 0.0).to(scores.dtype)


@check_shapes
def remax(scores: Float[Tensor, " rows"], greedy_scores: Float[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """Score - score of the greedy response to the same prompt (Li et al. 2023)."""
    return scores - greedy_scores


@check_shapes
def gae(
    rewards: Float[Tensor, " tokens"],
    values: Float[Tensor, " tokens"],
    written: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    gamma: float,
    gae_lambda: float,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Estimate advantages and returns of written tokens (Schulman et al. 2016).

    delta[t] = r[t] + gamma V[t'] - V[t]; A[t] = delta[t] + gamma lambda A[t']; return = A + V, where t' is the next
    token of the row that the policy wrote. Tokens that others wrote neither decay nor bootstrap, and what stands there
    in `rewards` and `values` is not looked at. The value after the last written token is 0.

    Args:
        rewards: of each token.
        values: the critic's, from before the token was written.
        written: tokens of the policy.
        offsets: boundaries of the rows.
        gamma: discount of a written token.
        gae_lambda: decay.

    Returns:
        Advantages and returns, 0 where not written.
    """
    rows = row_index(offsets)
    own, reward, value = rows[written], rewards[written], values[written]
    has_next = torch.zeros_like(own, dtype=torch.bool)
    has_next[:-1] = own[1:] == own[:-1]
    following = torch.where(has_next, value.roll(-1), 0.0)
    delta = reward + gamma * following - value
    decay = has_next.to(value.dtype) * (gamma * gae_lambda)
    advantage = backward_recurrence(delta, decay, int(torch.bincount(own).max()) if len(own) else 0)
    advantages, returns = torch.zeros_like(values), torch.zeros_like(values)
    advantages[written] = advantage
    returns[written] = advantage + value
    return advantages, returns


@check_shapes
def discounted_returns(
    rewards: Float[Tensor, " tokens"],
    written: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    gamma: float,
) -> Float[Tensor, " tokens"]:
    """Sum the discounted rewards from each written token on; tokens that others wrote do not discount."""
    returns, _ = gae(rewards, torch.zeros_like(rewards), written, offsets, gamma, 1.0)
    return returns


@check_shapes
def reinforce_plus_plus(
    rewards: Float[Tensor, " tokens"],
    written: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    gamma: float,
    correction: int = 1,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Return advantages, which are returns whitened over the written tokens of the batch, and the returns.

    Args:
        rewards: of each token, with the KL penalty inside.
        written: tokens of the policy; the others neither count nor discount.
        offsets: boundaries of the rows.
        gamma: discount of a written token.
        correction: of the variance, see `whiten`.
    """
    returns = discounted_returns(rewards, written, offsets, gamma)
    return whiten(returns, written, correction=correction), returns


@check_shapes
def reinforce_plus_plus_baseline(
    scores: Float[Tensor, " rows"],
    groups: Shaped[Tensor, " rows"] | None,
    kl: Float[Tensor, " tokens"],
    written: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    kl_coefficient: float = 0.0,
    kl_in: Literal["token", "return"] = "return",
    correction: int | None = 1,
) -> Float[Tensor, " tokens"]:
    """Whiten, over the batch, each token's score less the group's mean and less the KL penalty.

    Args:
        scores: of each response.
        groups: id of each response's prompt; None subtracts no mean.
        kl: to the reference, of each token.
        written: tokens of the policy.
        offsets: boundaries of the rows.
        kl_coefficient: weight of the penalty.
        kl_in: `token` takes each token's own KL from its advantage (NeMo-RL, slime); `return` takes that of the rest of
            the response, as a return does (OpenRLHF).
        correction: of the variance, see `whiten`; None does not whiten (slime).
    """
    centred = scores if groups is None else dr_grpo(scores, groups)
    if kl_in == "return":
        rewards = token_rewards(centred, kl, written, offsets, kl_coefficient)
        advantages = discounted_returns(rewards, written, offsets, 1.0)
    else:
        penalty = torch.where(written, kl_coefficient * kl, 0.0)
        advantages = torch.where(written, centred[row_index(offsets)] - penalty, 0.0)
    return advantages if correction is None else whiten(advantages, written, correction=correction)

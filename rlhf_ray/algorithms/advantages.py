"""Generalised advantage estimation on packed rows."""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.segments import backward_recurrence, row_index, row_sums
from rlhf_ray.algorithms.shapes import check_shapes


@check_shapes
def gae(
    rewards: Float[Tensor, " tokens"],
    values: Float[Tensor, " tokens"],
    written: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    gamma: float,
    gae_lambda: float | Float[Tensor, " rows"],
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Advantages and returns of written tokens (Schulman et al. 2016).

    delta[t] = r[t] + gamma V[t'] - V[t]; A[t] = delta[t] + gamma lambda A[t']; return = A + V, where t' is the next
    token of the row that the policy wrote. Tokens that others wrote neither decay nor bootstrap, and what stands there
    in `rewards` and `values` is not looked at. The value after the last written token is 0.

    Args:
        rewards: of each token.
        values: the critic's, from before the token was written.
        written: tokens of the policy.
        offsets: boundaries of the rows.
        gamma: discount of a written token.
        gae_lambda: decay, one for all or one for each row.

    Returns:
        Advantages and returns, 0 where not written.
    """
    rows = row_index(offsets)
    own, reward, value = rows[written], rewards[written], values[written]
    has_next = torch.zeros_like(own, dtype=torch.bool)
    has_next[:-1] = own[1:] == own[:-1]
    following = torch.where(has_next, value.roll(-1), 0.0)
    delta = reward + gamma * following - value
    lambdas = gae_lambda[own].to(value.dtype) if isinstance(gae_lambda, Tensor) else gae_lambda
    decay = has_next.to(value.dtype) * (gamma * lambdas)
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
    """Sum of the discounted rewards from each written token on; tokens that others wrote do not discount."""
    returns, _ = gae(rewards, torch.zeros_like(rewards), written, offsets, gamma, 1.0)
    return returns


@check_shapes
def length_adaptive_lambda(
    written: Bool[Tensor, " tokens"], offsets: Int64[Tensor, " rows+1"], alpha: float
) -> Float[Tensor, " rows"]:
    """Decay of GAE for each row by its written length: 1 - 1 / max(1, alpha x length) (VAPO, Yue et al. 2025)."""
    lengths = row_sums(written.double(), row_index(offsets), len(offsets) - 1)
    return 1 - 1 / (alpha * lengths).clamp(min=1)

"""REINFORCE++ and its variant with a group baseline (Hu et al. 2025): whitened returns, no critic."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from rlhf_ray.algorithms.advantages import discounted_returns
from rlhf_ray.algorithms.group_advantages import dr_grpo
from rlhf_ray.algorithms.rewards import token_rewards
from rlhf_ray.algorithms.segments import row_index
from rlhf_ray.algorithms.shapes import check_shapes
from rlhf_ray.algorithms.statistics import whiten


@check_shapes
def reinforce_plus_plus(
    rewards: Float[Tensor, " tokens"],
    written: Bool[Tensor, " tokens"],
    offsets: Int64[Tensor, " rows+1"],
    gamma: float,
    correction: int = 1,
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, " tokens"]]:
    """Advantages, the returns whitened over the written tokens of the batch, and returns.

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
    """Advantages: score minus the group's mean on each written token, less the KL penalty, whitened over the batch.

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

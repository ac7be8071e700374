"""The policy's loss and the off-policy correction that a config names."""

from dataclasses import fields, replace
from typing import Any

from rlhf_ray.algorithms.kl import KLTerm
from rlhf_ray.algorithms.off_policy import OffPolicyCorrection
from rlhf_ray.algorithms.policy_losses import POLICY_LOSSES, PolicyLoss
from rlhf_ray.config.algorithm import AlgorithmConfig


def policy_loss(algorithm: AlgorithmConfig, kl_coefficient: float) -> PolicyLoss:
    """Return the loss, with its entropy bonus and, where the config puts it there, the KL at its present weight."""
    low = algorithm.clip_range
    high = low if algorithm.clip_range_high is None else algorithm.clip_range_high
    kl = None
    if not algorithm.reward_kl and kl_coefficient:
        kl = KLTerm(kl_coefficient, algorithm.kl.estimator)
    loss = POLICY_LOSSES[algorithm.policy_loss].loss
    given = {"clip_low": low, "clip_high": high, "dual_clip": algorithm.dual_clip}
    own = {field.name for field in fields(loss)}
    settings: dict[str, Any] = {name: value for name, value in given.items() if name in own}
    return replace(loss, **settings, entropy_coefficient=algorithm.entropy_coefficient, kl=kl)


def off_policy_correction(algorithm: AlgorithmConfig) -> OffPolicyCorrection | None:
    """Return the correction; None where there is none."""
    low, high = algorithm.off_policy_bounds
    match algorithm.off_policy:
        case "truncated":
            return OffPolicyCorrection(level="token", beyond="truncate", low=low, high=high)
        case "icepop":
            return OffPolicyCorrection(level="token", beyond="mask", low=low, high=high)
        case "sequence_truncated":
            return OffPolicyCorrection(level="sequence", beyond="truncate", low=low, high=high)
        case "sequence_mask":
            return OffPolicyCorrection(level="sequence", beyond="mask", low=low, high=high)
        case "geometric_mask":
            return OffPolicyCorrection(level="mean", beyond="mask", kept="token_ratio", low=low, high=high)
        case "none":
            return None

"""The policy's loss and the off-policy correction that a config names."""

from rlhf_ray.algorithms.kl import KLTerm
from rlhf_ray.algorithms.off_policy import OffPolicyCorrection
from rlhf_ray.algorithms.policy_losses import CISPOLoss, ClippedPolicyLoss, GSPOLoss, PolicyLoss, SAPOLoss
from rlhf_ray.config.algorithm import AlgorithmConfig


def policy_loss(algorithm: AlgorithmConfig, kl_coefficient: float) -> PolicyLoss:
    """The loss, with its entropy bonus and, where the config puts it there, the KL at its present weight."""
    name, low = algorithm.policy_loss, algorithm.clip_range
    high = low if algorithm.clip_range_high is None else algorithm.clip_range_high
    entropy, kl = algorithm.entropy_coefficient, None
    if not algorithm.reward_kl and kl_coefficient:
        kl = KLTerm(kl_coefficient, algorithm.kl.estimator)
    if name == "gspo":
        return GSPOLoss(clip_low=low, clip_high=high, entropy_coefficient=entropy, kl=kl)
    if name == "cispo":
        return CISPOLoss(clip_low=low, clip_high=high, entropy_coefficient=entropy, kl=kl)
    if name == "sapo":
        return SAPOLoss(entropy_coefficient=entropy, kl=kl)
    return ClippedPolicyLoss(
        clip_low=low,
        clip_high=high,
        dual_clip=algorithm.dual_clip,
        level="sequence" if name == "clip_sequence" else "token",
        entropy_coefficient=entropy,
        kl=kl,
    )


def off_policy_correction(algorithm: AlgorithmConfig) -> OffPolicyCorrection | None:
    """The correction; None where there is none."""
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

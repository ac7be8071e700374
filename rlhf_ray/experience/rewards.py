"""From what the reward sources said to the score of each response."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_ray.algorithms.rewards import RunningMoments, clip_scores, overlong_penalty, penalise_missing_eos
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.data.records import Sample


def shape_rewards(
    rewards: Float[Tensor, " rows"],
    samples: Sequence[Sample],
    algorithm: AlgorithmConfig,
    moments: RunningMoments,
    longest: int,
) -> Float[Tensor, " rows"]:
    """Baseline, normalisation, clipping and penalties, in this order; 0 where a source failed.

    Args:
        rewards: weighted sums of the sources; NaN where one failed.
        samples: the responses.
        algorithm: says what is done.
        moments: of all rewards so far, these among them.
        longest: tokens that a response may have.
    """
    scores = torch.where(torch.isfinite(rewards), rewards, 0.0)
    if algorithm.reward_normalisation == "whiten":
        scores = moments.normalise(scores)
    elif algorithm.reward_normalisation == "scale":
        scores = moments.normalise(scores - algorithm.reward_baseline, shift_mean=False)
    elif algorithm.reward_baseline:
        scores = scores - algorithm.reward_baseline
    if algorithm.reward_clip is not None:
        scores = clip_scores(scores, algorithm.reward_clip)
    scores = penalise_missing_eos(scores, ended(samples), algorithm.missing_eos_penalty)
    if algorithm.overlong_penalty is not None:
        buffer, penalty = algorithm.overlong_penalty
        lengths = torch.tensor([float(len(sample.response_ids)) for sample in samples])
        scores = scores + overlong_penalty(lengths, longest, buffer, penalty)
    return torch.where(torch.isfinite(rewards), scores, 0.0)


def ended(samples: Sequence[Sample]) -> Bool[Tensor, " rows"]:
    """Which responses ended by themselves."""
    return torch.tensor([sample.finish_reason == "stop" for sample in samples])

"""What is reported of a scored rollout batch."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.segments import row_index, row_sums
from rlhf_ray.algorithms.statistics import explained_variance
from rlhf_ray.config.algorithm import COMPARES_GROUPS, AlgorithmConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import ASSISTANT, Sample
from rlhf_ray.experience.estimators import ScoredBatch


def experience_metrics(
    samples: Sequence[Sample],
    batch: TokenBatch,
    logprobs: Float[Tensor, " tokens"],
    scored: ScoredBatch,
    row_kl: Float[Tensor, " rows"],
    returns: Float[Tensor, " tokens"] | None,
    kl_coefficient: float,
) -> dict[str, float]:
    """Return metrics of scores, KL and lengths.

    Args:
        samples: the responses.
        batch: their tokens.
        logprobs: the policy's before the update.
        scored: scores, and what is learned.
        row_kl: KL to the reference, summed over each response.
        returns: what the critic learns; None without one.
        kl_coefficient: present weight of the KL, wherever it counts.
    """
    lengths = torch.from_numpy(batch.response_lengths).float()
    known, learned, scores, penalty = scored.known, scored.learned, scored.scores, scored.kl_coefficient
    metrics = {
        "objective/kl_coefficient": kl_coefficient,
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": sum(s.finish_reason == "length" for s in samples) / len(samples),
        "val/num_eos_tokens": float(sum(s.finish_reason == "stop" for s in samples)),
    }
    if scored.unscored is not None and bool(scored.unscored.any()):
        metrics["sampling/unscored_tokens"] = float(scored.unscored.sum())
    if scored.values is not None and returns is not None:
        metrics["value/explained_variance"] = float(explained_variance(scored.values, returns, learned))
    # What a batch without rewards, or without a token of its own, does not have is left out: a zero would be a lie.
    if bool(known.any()):
        surprise = row_sums(torch.where(learned, -logprobs, 0.0), row_index(scored.offsets), batch.rows)
        metrics |= {
            "objective/kl": float(row_kl[known].mean()),
            "objective/scores": float(scores[known].mean()),
            "reward_std": float(scores[known].std(correction=0)),
            "objective/non_score_reward": float(-penalty * row_kl[known].mean()),
            "objective/rlhf_reward": float((scores - penalty * row_kl)[known].mean()),
            "objective/entropy": float(surprise[known].mean()),
        }
    return metrics | _of_episodes(samples) | _by_source(samples)


def mismatch_metrics(
    logprobs: Float[Tensor, " tokens"], behaviour: Float[Tensor, " tokens"], written: Bool[Tensor, " tokens"]
) -> dict[str, float]:
    """Return how far the trainer's and the engine's log-probabilities are apart, over tokens that the policy wrote."""
    if not bool(written.any()):
        return {}
    mismatch = (logprobs - behaviour).abs()[written]
    return {
        "sampling/sampling_logp_difference/mean": float(mismatch.mean()),
        "sampling/sampling_logp_difference/max": float(mismatch.max()),
    }


def staleness_metrics(samples: Sequence[Sample], version: int) -> dict[str, float]:
    """Return by how many versions tokens are older than the weights that learn from them, and who saw several versions.

    Args:
        samples: the responses.
        version: of the weights that learn.
    """
    spans = [span for sample in samples for span in sample.weight_versions]
    lengths = np.array([span.end - span.start for span in spans])
    ages = version - np.array([span.version for span in spans])
    if not lengths.sum():
        return {}
    mixed = [len({span.version for span in sample.weight_versions}) > 1 for sample in samples]
    return {
        "staleness/mean": float((ages * lengths).sum() / lengths.sum()),
        "staleness/max": float(ages.max()),
        "staleness/mixed": sum(mixed) / len(mixed),
    }


def _of_episodes(samples: Sequence[Sample]) -> dict[str, float]:
    """Return how many turns the policy took, and how episodes ended; nothing where there are none."""
    episodes = [sample for sample in samples if sample.episode is not None]
    if not episodes:
        return {}
    turns = [sum(turn["role"] == ASSISTANT for turn in one.episode.turns) for one in episodes if one.episode]
    return {
        "episodes/turns": sum(turns) / len(turns),
        "episodes/out_of_turns": sum(one.finish_reason == "turns" for one in episodes) / len(episodes),
        "episodes/failed": float(sum(one.finish_reason == "error" for one in episodes)),
    }


def _by_source(samples: Sequence[Sample]) -> dict[str, float]:
    """Return mean and spread of each source's own scores, and how often it failed; where it does not apply
    does not count.
    """
    metrics = {}
    for name in sorted({name for s in samples for name in s.rewards}):
        given = np.array([value for s in samples if (value := s.rewards.get(name)) is not None])
        scored = given[np.isfinite(given)]
        metrics[f"rewards/{name}/failed"] = float(len(given) - len(scored))
        if len(scored):
            metrics[f"rewards/{name}/mean"] = float(scored.mean())
            metrics[f"rewards/{name}/std"] = float(scored.std())
    return metrics


def group_metrics(
    rewards: Float[Tensor, " known"], groups: Int64[Tensor, " known"], algorithm: AlgorithmConfig
) -> dict[str, float]:
    """Return the share of groups with nothing to compare: all their rewards are equal."""
    if algorithm.advantages not in COMPARES_GROUPS or not len(groups):
        return {}
    present, index = torch.unique(groups, return_inverse=True)
    highest = torch.full((len(present),), -torch.inf).scatter_reduce(0, index, rewards, "amax")
    lowest = torch.full((len(present),), torch.inf).scatter_reduce(0, index, rewards, "amin")
    return {"frac_reward_zero_std": float((highest == lowest).float().mean())}

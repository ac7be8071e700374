"""From a scored rollout batch to what the policy learns from: KL, shaped rewards, advantages, returns.

Everything here runs once on the driver, over the whole batch, on flat arrays (response tokens, row after row), so that
the result cannot depend on ranks or micro-batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from rlhf_ray.algorithms.kl import kl_estimate
from rlhf_ray.algorithms.rewards import RunningMoments, clip_scores, overlong_penalty, penalise_missing_eos
from rlhf_ray.algorithms.segments import row_index, row_sums
from rlhf_ray.config.algorithm import COMPARES_GROUPS, AlgorithmConfig
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import TURN_REWARDS, Sample
from rlhf_ray.experience.costs import COST_CRITIC_ROLE, CostConstraint, Costs, constrained_advantages
from rlhf_ray.experience.estimators import ScoredBatch, estimate_advantages
from rlhf_ray.experience.metrics import experience_metrics, group_metrics, mismatch_metrics
from rlhf_ray.experience.objectives import off_policy_correction

UNSCORED_SHARE = 0.01
"""Share of the tokens for which engines may give no log-probability; they are counted and not learned from. One in a
long batch is an accident of rounding; more mean that what the engines sample from is no distribution."""


@dataclass(frozen=True)
class Greedy:
    """The most likely response to each row's prompt."""

    samples: Sequence[Sample]
    """One for each row; rows of a group share theirs."""
    rewards: Float[Tensor, " rows"]
    """Weighted sum of the reward sources; NaN where a source failed."""


@dataclass(frozen=True)
class RoleOutputs:
    """Log-probabilities and values that the roles computed for a batch, in flat order."""

    logprobs: Float[Tensor, " tokens"]
    """The policy's before the update, at the sampling temperature: the old ones of the ratio, its side of the KL."""
    reference_logprobs: Float[Tensor, " tokens"] | None
    values: Float[Tensor, " tokens"] | None
    """Of the critic, where there is one."""
    scores: Float[Tensor, " rows"]
    """Weighted sum of the reward sources; NaN where a source failed."""
    greedy: Greedy | None = None
    """Where the estimator compares with it."""
    costs: Costs | None = None
    """Where costs have a critic."""


@dataclass(frozen=True)
class Experience:
    """A rollout batch ready to learn from."""

    samples: Sequence[Sample]
    batch: TokenBatch
    learned: Bool[Tensor, " tokens"]
    """Written tokens of rows whose reward is known, less those that came without a log-probability; all others have no
    weight in any loss."""
    columns: dict[str, Float[Tensor, " tokens"]]
    """The policy's: `old_logprobs`, `advantages`; `reference_logprobs` and `importance_weights` where its loss reads
    them."""
    mean_kl: float
    """KL to the reference of a response, summed over its tokens, averaged over responses; feeds the KL controller."""
    metrics: dict[str, float]
    critic_columns: dict[str, dict[str, Float[Tensor, " tokens"]]] = field(default_factory=dict)
    """`old_values`, `returns` of each critic, by its role; nothing without one."""
    groups: Int64[np.ndarray, " rows"] | None = None
    """Rows of one number are learned from in one optimizer step. None: rows are free."""
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of all rewards of the run, these among them."""
    constraint: CostConstraint | None = None
    """As it is after these costs."""


def estimate(
    samples: Sequence[Sample],
    batch: TokenBatch,
    outputs: RoleOutputs,
    algorithm: AlgorithmConfig,
    kl_coefficient: float,
    *,
    longest: int,
    moments: RunningMoments | None = None,
    constraint: CostConstraint | None = None,
) -> Experience:
    """Compute shaped rewards, KL, advantages and returns over written tokens, and importance weights.

    Args:
        samples: the responses, group after group.
        batch: their tokens.
        outputs: what the roles computed.
        algorithm: says how.
        kl_coefficient: present weight of the KL.
        longest: tokens that a response may have.
        moments: of the rewards of earlier batches; None before the first.
        constraint: on the costs, as it was after earlier batches; None where costs have no critic.
    """
    moments = (moments or RunningMoments()).update(outputs.scores)
    scored = _scored_batch(samples, batch, outputs, algorithm, kl_coefficient, longest, moments)
    known, groups = scored.known, scored.groups
    columns, metrics = _policy_columns(samples, outputs, scored, algorithm)
    if constraint is None or outputs.costs is None:
        advantages, returns = estimate_advantages(scored, algorithm)
        critic_columns = _critic_columns(outputs.values, returns)
    else:
        constraint = constraint.after(outputs.costs.scores[known].tolist())
        found = constrained_advantages(scored, outputs.costs, constraint, algorithm)
        advantages, returns, metrics = found.advantages, found.returns, metrics | found.metrics
        critic_columns = _critic_columns(outputs.values, returns)
        critic_columns[COST_CRITIC_ROLE] = {"old_values": outputs.costs.values, "returns": found.cost_returns}
    if algorithm.old_logprobs == "trainer":
        compared = scored.written & torch.isfinite(behaviour_logprobs(samples))
        metrics |= mismatch_metrics(outputs.logprobs, behaviour_logprobs(samples), compared)
    row_kl = row_sums(scored.kl, row_index(scored.offsets), batch.rows)
    return Experience(
        samples=samples,
        batch=batch,
        learned=scored.learned,
        columns=columns | {"advantages": advantages},
        mean_kl=float(row_kl[known].mean()) if bool(known.any()) else 0.0,
        metrics=experience_metrics(samples, batch, outputs.logprobs, scored, row_kl, returns, kl_coefficient)
        | group_metrics(outputs.scores[known], groups[known], algorithm)
        | metrics,
        critic_columns=critic_columns,
        groups=groups.numpy() if algorithm.advantages in COMPARES_GROUPS else None,
        moments=moments,
        constraint=constraint,
    )


def _scored_batch(
    samples: Sequence[Sample],
    batch: TokenBatch,
    outputs: RoleOutputs,
    algorithm: AlgorithmConfig,
    kl_coefficient: float,
    longest: int,
    moments: RunningMoments,
) -> ScoredBatch:
    """Shape scores and compute KL; a response is known where its reward, its greedy rival's and its cost are."""
    known, greedy_scores = torch.isfinite(outputs.scores), None
    if outputs.greedy is not None:
        known = known & torch.isfinite(outputs.greedy.rewards)
        greedy_scores = shape_rewards(outputs.greedy.rewards, outputs.greedy.samples, algorithm, moments, longest)
    if outputs.costs is not None:
        known = known & torch.isfinite(outputs.costs.scores)
    written = torch.from_numpy(batch.written)
    unscored = unscored_tokens(samples, written)
    kl = torch.zeros_like(outputs.logprobs)
    if outputs.reference_logprobs is not None:
        found = kl_estimate(outputs.logprobs, outputs.reference_logprobs, algorithm.kl.estimator)
        kl = torch.where(written & ~unscored, found, 0.0)
    return ScoredBatch(
        scores=shape_rewards(outputs.scores, samples, algorithm, moments, longest),
        known=known,
        groups=group_numbers(samples),
        kl=kl,
        kl_coefficient=kl_coefficient if algorithm.reward_kl else 0.0,
        written=written,
        offsets=torch.from_numpy(batch.response_offsets),
        values=outputs.values,
        greedy_scores=greedy_scores,
        unscored=unscored,
        turn_rewards=turn_rewards(samples, known),
    )


def shape_rewards(
    rewards: Float[Tensor, " rows"],
    samples: Sequence[Sample],
    algorithm: AlgorithmConfig,
    moments: RunningMoments,
    longest: int,
) -> Float[Tensor, " rows"]:
    """Apply baseline, normalisation, clipping and penalties, in this order; 0 where a source failed.

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
    """Tell which responses ended by themselves."""
    return torch.tensor([sample.finish_reason == "stop" for sample in samples])


def unscored_tokens(samples: Sequence[Sample], written: Bool[Tensor, " tokens"]) -> Bool[Tensor, " tokens"]:
    """Return which written tokens came without a log-probability that is a number.

    Raises:
        RlhfError: they are too many.
    """
    unscored = written & ~torch.isfinite(behaviour_logprobs(samples))
    count, total = int(unscored.sum()), int(written.sum())
    if count > UNSCORED_SHARE * total:
        raise RlhfError(
            f"rollout: for {count} of {total} tokens the engines gave no log-probability that is a number (NaN or "
            f"infinite), more than {UNSCORED_SHARE:.0%}: their computation overflows. Try model.dtype: float32, or "
            "look for NaN in the model's weights"
        )
    return unscored


def turn_rewards(samples: Sequence[Sample], known: Bool[Tensor, " rows"]) -> Float[Tensor, " tokens"] | None:
    """Return what environments gave for turns, in flat order, 0 in rows whose reward is not known; None without any."""
    if not any(TURN_REWARDS in sample.extras for sample in samples):
        return None
    nothing = [np.zeros(len(sample.response_ids), np.float32) for sample in samples]
    given = [sample.extras.get(TURN_REWARDS, zeros) for sample, zeros in zip(samples, nothing, strict=True)]
    rows = [one if is_known else zeros for one, zeros, is_known in zip(given, nothing, known.tolist(), strict=True)]
    return torch.from_numpy(np.concatenate(rows))


def group_numbers(samples: Sequence[Sample]) -> Int64[Tensor, " rows"]:
    """Return the number of each sample's group: groups come one after the other, each beginning with index 0."""
    return torch.tensor([sample.index == 0 for sample in samples], dtype=torch.long).cumsum(0) - 1


def behaviour_logprobs(samples: Sequence[Sample]) -> Float[Tensor, " tokens"]:
    """Return the log-probabilities as the engines computed them, in flat order."""
    # Copied by numpy: arrays that came through Ray cannot be written to, which torch warns of.
    return torch.from_numpy(np.concatenate([sample.behaviour_logprobs for sample in samples]))


def _critic_columns(values: Tensor | None, returns: Tensor | None) -> dict[str, dict[str, Float[Tensor, " tokens"]]]:
    return {} if values is None or returns is None else {"critic": {"old_values": values, "returns": returns}}


def _policy_columns(
    samples: Sequence[Sample], outputs: RoleOutputs, scored: ScoredBatch, algorithm: AlgorithmConfig
) -> tuple[dict[str, Float[Tensor, " tokens"]], dict[str, float]]:
    """Return what the policy's loss reads besides advantages, and diagnostics of the off-policy correction."""
    columns, diagnostics = {"old_logprobs": outputs.logprobs}, {}
    if not algorithm.reward_kl and outputs.reference_logprobs is not None:
        columns["reference_logprobs"] = outputs.reference_logprobs
    correction = off_policy_correction(algorithm)
    if correction is not None:
        weights, found = correction(outputs.logprobs, behaviour_logprobs(samples), scored.learned, scored.offsets)
        columns["importance_weights"] = weights
        diagnostics = {name: float(value) for name, value in found.items()}
    return columns, diagnostics

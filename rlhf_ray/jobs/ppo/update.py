"""The optimizer steps of a PPO step: policy and critics, side by side."""

from collections.abc import Callable, Mapping, Sequence

import ray

from rlhf_ray.algorithms.losses import ClippedValueLoss
from rlhf_ray.algorithms.policy_losses import PolicyLoss
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.experience.experience import Experience
from rlhf_ray.experience.minibatches import Step, StepMetrics, draw_epochs
from rlhf_ray.roles.trainer import Pending, SharedBatch, TrainerGroup
from rlhf_ray.training.microbatch import ExtraBatch

StepResult = Pending[dict[str, float]]


def optimise(
    experience: Experience,
    config: PPOConfig,
    policy: TrainerGroup,
    critics: Mapping[str, TrainerGroup],
    policy_loss: PolicyLoss,
    *,
    step: int,
    draw_texts: Callable[[], ExtraBatch] | None = None,
) -> dict[str, float]:
    """Make `epochs` passes over the batch in `minibatches` optimizer steps each.

    The policy rests in the critics' warm-up, and once it moved past `target_kl`.

    Args:
        experience: the batch.
        config: of the run.
        policy: learns by `policy_loss`.
        critics: learn the returns, each its own, by role.
        policy_loss: see `objectives.policy_loss`.
        step: steps that were done before; with the run's seed it fixes the order of rows.
        draw_texts: gives what is mixed into each optimizer step of the policy.

    Returns:
        Means of the optimizer steps' metrics, and the policy's number of steps.
    """
    algorithm = config.algorithm
    learns = step >= algorithm.critic_warmup_steps
    value_loss = ClippedValueLoss(algorithm.value_clip_range)
    shared = SharedBatch.put(experience.batch)
    policy_steps: list[tuple[Step, StepResult]] = []
    critic_steps: list[tuple[str, StepResult]] = []
    epochs = draw_epochs(
        experience,
        config.epochs,
        config.minibatches,
        (config.seed, step),
        algorithm.loss_aggregation,
        config.rollout.max_new_tokens,
    )
    for epoch in epochs:
        columns = ray.put(epoch.columns)
        critic_columns = {role: ray.put(epoch.critic_columns[role]) for role in critics}
        for one in epoch.steps:
            if learns and not _moved_too_far(policy_steps, algorithm.target_kl):
                extra = None if draw_texts is None else draw_texts()
                taken = policy.submit_train_step(shared, policy_loss, columns, rows=one.rows, extra=extra)
                policy_steps.append((one, taken))
            for role, critic in critics.items():
                taken = critic.submit_train_step(shared, value_loss, critic_columns[role], rows=one.rows)
                critic_steps.append((role, taken))
    metrics = StepMetrics()
    for one, taken in policy_steps:
        metrics.add("policy", taken.result(), one.total_weight)
    for role, taken in critic_steps:
        metrics.add(role, taken.result())
    return metrics.means() | {"policy/optimizer_steps": float(len(policy_steps))}


def _moved_too_far(steps: Sequence[tuple[Step, StepResult]], target: float | None) -> bool:
    """Tell whether the policy's newest step passed `target_kl`; then it rests until there are new samples."""
    if target is None or not steps:
        return False
    newest, taken = steps[-1]
    return taken.result()["policy/approxkl_avg"] / newest.total_weight > target

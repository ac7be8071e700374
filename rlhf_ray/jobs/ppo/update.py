"""The optimizer steps of a PPO step: policy and critics, side by side or in turns."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import ray

from rlhf_ray.algorithms.losses import ClippedValueLoss
from rlhf_ray.algorithms.policy_losses import PolicyLoss
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.experience.experience import Experience
from rlhf_ray.experience.minibatches import Epoch, Step, StepMetrics, draw_epochs
from rlhf_ray.jobs.ppo.roles import PPORoles
from rlhf_ray.jobs.ppo.turns import POLICY
from rlhf_ray.roles.trainer import Pending, SharedBatch
from rlhf_ray.training.microbatch import ExtraBatch

StepResult = Pending[dict[str, float]]


def optimise(
    experience: Experience,
    config: PPOConfig,
    roles: PPORoles,
    policy_loss: PolicyLoss,
    *,
    step: int,
    draw_texts: Callable[[], ExtraBatch] | None = None,
) -> dict[str, float]:
    """Make `epochs` passes over the batch in `minibatches` optimizer steps each.

    The policy rests in the critics' warm-up, and once it moved past `target_kl`. Models learn side by side, but one
    after another where they share devices.

    Args:
        experience: the batch.
        config: of the run.
        roles: policy, which learns by `policy_loss`, and critics, which learn the returns.
        policy_loss: see `objectives.policy_loss`.
        step: steps that were done before; with the run's seed it fixes the order of rows.
        draw_texts: gives what is mixed into each optimizer step of the policy.

    Returns:
        Means of the optimizer steps' metrics, and the policy's number of steps.
    """
    learning = _Learning(
        SharedBatch.put(experience.batch),
        config.algorithm,
        roles,
        policy_loss,
        rests=step < config.algorithm.critic_warmup_steps,
        draw_texts=draw_texts,
    )
    epochs = list(
        draw_epochs(
            experience,
            config.epochs,
            config.minibatches,
            (config.seed, step),
            config.algorithm.loss_aggregation,
            config.rollout.max_new_tokens,
        )
    )
    for names in roles.turns.rounds([*roles.critics, POLICY]):
        roles.turns.give(*names)
        for epoch in epochs:
            learning.start(epoch, names)
        learning.wait()
    return learning.metrics()


@dataclass
class _Learning:
    """Optimizer steps of one batch, on their way."""

    shared: SharedBatch
    algorithm: AlgorithmConfig
    roles: PPORoles
    policy_loss: PolicyLoss
    rests: bool
    """Whether the policy does not learn."""
    draw_texts: Callable[[], ExtraBatch] | None
    policy_steps: list[tuple[Step, StepResult]] = field(default_factory=list)
    critic_steps: list[tuple[str, StepResult]] = field(default_factory=list)

    def start(self, epoch: Epoch, names: Collection[str]) -> None:
        """Send one pass to those of the models that have the devices."""
        value_loss = ClippedValueLoss(self.algorithm.value_clip_range)
        columns = ray.put(epoch.columns) if POLICY in names else None
        critics = {role: critic for role, critic in self.roles.critics.items() if role in names}
        critic_columns = {role: ray.put(epoch.critic_columns[role]) for role in critics}
        for one in epoch.steps:
            if columns is not None and not self.rests and not self._moved_too_far():
                extra = None if self.draw_texts is None else self.draw_texts()
                policy = self.roles.policy
                taken = policy.submit_train_step(self.shared, self.policy_loss, columns, rows=one.rows, extra=extra)
                self.policy_steps.append((one, taken))
            for role, critic in critics.items():
                taken = critic.submit_train_step(self.shared, value_loss, critic_columns[role], rows=one.rows)
                self.critic_steps.append((role, taken))

    def _moved_too_far(self) -> bool:
        """Tell whether the policy's newest step passed `target_kl`; then it rests until there are new samples."""
        target = self.algorithm.target_kl
        if target is None or not self.policy_steps:
            return False
        newest, taken = self.policy_steps[-1]
        return taken.result()["policy/approxkl_avg"] / newest.total_weight > target

    def wait(self) -> None:
        """Wait until nobody computes any more."""
        for _, taken in (*self.policy_steps, *self.critic_steps):
            taken.result()

    def metrics(self) -> dict[str, float]:
        """Return means over the steps, by model."""
        metrics = StepMetrics()
        for one, taken in self.policy_steps:
            metrics.add("policy", taken.result(), one.total_weight)
        for role, taken in self.critic_steps:
            metrics.add(role, taken.result())
        return metrics.means() | {"policy/optimizer_steps": float(len(self.policy_steps))}

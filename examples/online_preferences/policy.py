"""The agent's networks, and one PPO update of them by the project's own losses."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal

from examples.online_preferences.tasks import Episodes, Task
from rlhf_ray.algorithms.advantages import gae
from rlhf_ray.algorithms.losses import ClippedValueLoss
from rlhf_ray.algorithms.policy_losses import ClippedPolicyLoss
from rlhf_ray.algorithms.statistics import whiten

HIDDEN = 64


@dataclass(frozen=True)
class PPO:
    """Settings by which the policy learns from a round of episodes."""

    learning_rate: float = 1e-3
    epochs: int = 10
    minibatch: int = 400
    gae_lambda: float = 0.95
    entropy_coefficient: float = 0.0
    clip: float = 0.2
    grad_norm: float = 0.5
    log_std: float = 0.0
    """Of a continuous action at the start, in units of its largest value."""


class Agent(nn.Module):
    """Policy and critic, two small networks."""

    def __init__(self, task: Task, seed: int, settings: PPO) -> None:
        super().__init__()
        self.task = task
        torch.manual_seed(seed)
        features = len(task.scale)
        self.policy = _network(features, task.actions, 0.01)
        self.critic = _network(features, 1, 1.0)
        self.log_std = nn.Parameter(torch.full((0 if task.discrete else task.actions,), settings.log_std))

    def distribution(self, observations: Tensor) -> Distribution:
        """Return the distribution of the actions [rows] or [rows, numbers]."""
        out = self.policy(observations)
        return Categorical(logits=out) if self.task.discrete else Independent(Normal(out, self.log_std.exp()), 1)

    def values(self, observations: Tensor) -> Tensor:
        """Return the values of states [..., features]."""
        return self.critic(observations).squeeze(-1)

    @torch.no_grad()
    def act(
        self, observations: np.ndarray, generator: torch.Generator | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Act`. Without a generator the likeliest action is taken."""
        distribution = self.distribution(torch.from_numpy(observations))
        if isinstance(distribution, Categorical):
            action = (
                distribution.probs.argmax(1)
                if generator is None
                else torch.multinomial(distribution.probs, 1, generator=generator)[:, 0]
            )
            kept = torch.nn.functional.one_hot(action, self.task.actions).float()
            return action.numpy(), kept.numpy(), distribution.log_prob(action).numpy()
        mean = distribution.mean
        noise = 0.0 if generator is None else torch.randn(mean.shape, generator=generator)
        action = mean + noise * self.log_std.exp()
        assert self.task.action_scale is not None, "the distribution is continuous, and so is the action"
        order = action.clamp(-1, 1) * self.task.action_scale
        return order.numpy(), action.numpy(), distribution.log_prob(action).numpy()

    def logprobs(self, distribution: Distribution, actions: Tensor) -> Tensor:
        """Return log-probabilities of actions as they are kept."""
        return distribution.log_prob(actions.argmax(1) if self.task.discrete else actions)


def _network(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after, scale in ((inputs, HIDDEN, 2**0.5), (HIDDEN, HIDDEN, 2**0.5), (HIDDEN, outputs, gain)):
        linear = nn.Linear(before, after)
        nn.init.orthogonal_(linear.weight, scale)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def prepare(agent: Agent, episodes: Episodes, rewards: Tensor, settings: PPO) -> dict[str, Tensor]:
    """Make columns of all steps of a round, flat: what PPO's losses need.

    Args:
        agent: whose critic judges states.
        episodes: of the policy as it is.
        rewards: [episodes, steps], of a fixed scale.
    """
    count, length = rewards.shape
    observations = torch.from_numpy(episodes.observations)
    with torch.no_grad():
        values, last = agent.values(observations), agent.values(torch.from_numpy(episodes.last))
    # The task goes on where the episode is cut: what would have come is worth what the critic says.
    rewards = rewards.clone()
    rewards[:, -1] += agent.task.gamma * last
    offsets = torch.arange(0, count * length + 1, length)
    written = torch.ones(count * length, dtype=torch.bool)
    advantages, returns = gae(
        rewards.flatten(), values.flatten(), written, offsets, agent.task.gamma, settings.gae_lambda
    )
    return {
        "observations": observations.flatten(0, 1),
        "actions": torch.from_numpy(episodes.actions).flatten(0, 1),
        "old_logprobs": torch.from_numpy(episodes.logprobs).flatten(),
        "advantages": whiten(advantages, written),
        "returns": returns,
    }


def update(
    agent: Agent,
    optimizer: torch.optim.Optimizer,
    columns: dict[str, Tensor],
    settings: PPO,
    generator: torch.Generator,
) -> dict[str, float]:
    """Make the optimizer steps of a round; the mean of their metrics."""
    policy_loss = ClippedPolicyLoss(
        clip_low=settings.clip, clip_high=settings.clip, entropy_coefficient=settings.entropy_coefficient
    )
    value_loss = ClippedValueLoss(clip_range=None)
    sums: dict[str, float] = {}
    steps = 0
    for _ in range(settings.epochs):
        for chosen in torch.randperm(len(columns["returns"]), generator=generator).split(settings.minibatch):
            batch = {name: column[chosen] for name, column in columns.items()}
            batch["weight"] = torch.full((len(chosen),), 1 / len(chosen))
            batch["rows"] = torch.arange(len(chosen))
            distribution = agent.distribution(batch["observations"])
            outputs = {"logprobs": agent.logprobs(distribution, batch["actions"]), "entropy": distribution.entropy()}
            loss, metrics = policy_loss(outputs, batch)
            critic_loss, more = value_loss({"values": agent.values(batch["observations"])}, batch)
            optimizer.zero_grad()
            (loss + critic_loss).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), settings.grad_norm)
            optimizer.step()
            steps += 1
            for name, value in (metrics | more).items():
                sums[name] = sums.get(name, 0.0) + float(value)
    return {name: value / steps for name, value in sums.items()}

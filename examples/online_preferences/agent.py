"""The role that acts: walks through episodes, learns from a reward that others make, and hands out clips."""

from dataclasses import dataclass

import numpy as np
import torch

from examples.online_preferences.policy import PPO, Agent, prepare, update
from examples.online_preferences.saving import (
    Saved,
    Tensors,
    clips_of,
    give_moments,
    moments,
    named,
    tensors_of,
    under,
)
from examples.online_preferences.tasks import TASKS, Course, Episodes
from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.feedback.clips.clips import Clips
from rlhf_ray.feedback.clips.fitting import RewardEnsemble

CLIPS_PER_EPISODE = 4
EVALUATION = 1_000_000
"""Added to the seed, so that no episode of an evaluation is one of the training."""


@dataclass(frozen=True)
class Walked:
    """Clips, steps and metrics of a round."""

    clips: Clips
    steps: int
    metrics: dict[str, float]


class ActingRole(Saved):
    """One agent with its environments.

    Args:
        task: name of the task.
        seed: of everything that is drawn.
        episodes: in a round.
        evaluation_episodes: in an evaluation.
    """

    def __init__(self, task: str, seed: int, episodes: int, evaluation_episodes: int) -> None:
        self._task = TASKS[task]
        self._seed = seed
        self._settings = PPO()
        self._agent = Agent(self._task, seed, self._settings)
        self._optimizer = torch.optim.Adam(self._agent.parameters(), self._settings.learning_rate, eps=1e-5)
        self._course = Course(self._task, episodes)
        self._held_out = Course(self._task, evaluation_episodes)
        self._true_moments = RunningMoments()
        self._last: Clips | None = None

    def explore(self) -> Walked:
        """Return clips of the policy that has learned nothing, and what it is worth."""
        self._last = self._clips(self._walk(0), 0)
        return Walked(self._last, self._steps, {"eval_reward": self.evaluate()})

    def current(self) -> Walked:
        """Return clips of the last round."""
        assert self._last is not None, "a role that never walked has no clips"
        return Walked(self._last, self._steps, {})

    @property
    def _steps(self) -> int:
        """Steps of a round."""
        return self._task.steps * self._course.copies

    def train(self, number: int, ensemble: RewardEnsemble | None, evaluate: bool) -> Walked:
        """Walk through a round of episodes and learn from it.

        Args:
            number: of the round, from 1; decides all that is drawn in it.
            ensemble: predicts the reward; None: the true reward.
            evaluate: afterwards.
        """
        episodes = self._walk(number)
        rewards = self._true(episodes) if ensemble is None else self._predicted(episodes, ensemble)
        columns = prepare(self._agent, episodes, rewards, self._settings)
        metrics = update(self._agent, self._optimizer, columns, self._settings, self._generator(number, 1))
        metrics["reward"] = float(episodes.true_rewards.sum(1).mean())
        if ensemble is not None:
            metrics["predictor/correlation"] = _correlation(rewards, torch.from_numpy(episodes.true_rewards))
        if evaluate:
            metrics["eval_reward"] = self.evaluate()
        self._last = self._clips(episodes, number)
        return Walked(self._last, self._steps, metrics)

    def evaluate(self) -> float:
        """Return the mean true return of episodes that are always the same, with the likeliest actions."""
        episodes = self._held_out.walk(lambda seen: self._agent.act(seen, None), [self._seed, EVALUATION])
        return float(episodes.true_rewards.sum(1).mean())

    def state(self) -> dict[str, torch.Tensor]:
        """See `Saved`. Environments begin anew in each round, and all dice are those of the round."""
        agent, optimizer = self._agent.state_dict(), moments(self._optimizer)
        last = {} if self._last is None else named("last", tensors_of(self._last))
        moments_seen = torch.tensor(list(vars(self._true_moments).values()), dtype=torch.float64)
        return named("agent", agent) | named("optimizer", optimizer) | last | {"true_moments": moments_seen}

    def load(self, tensors: Tensors) -> None:
        """See `Saved`."""
        self._agent.load_state_dict(under("agent", tensors))
        give_moments(self._optimizer, under("optimizer", tensors))
        count, mean, squares = tensors["true_moments"].tolist()
        self._true_moments = RunningMoments(int(count), mean, squares)
        self._last = clips_of(under("last", tensors))

    def _generator(self, *place: int) -> torch.Generator:
        drawn = np.random.default_rng([self._seed, *place]).integers(2**62)
        return torch.Generator().manual_seed(int(drawn))

    def _walk(self, number: int) -> Episodes:
        generator = self._generator(number, 0)
        return self._course.walk(lambda seen: self._agent.act(seen, generator), [self._seed, number])

    def _true(self, episodes: Episodes) -> torch.Tensor:
        """Return the true reward on the scale of the predicted one, as far as it is known by now."""
        rewards = torch.from_numpy(episodes.true_rewards)
        self._true_moments = self._true_moments.update(rewards.flatten())
        return self._true_moments.normalise(rewards)

    def _predicted(self, episodes: Episodes, ensemble: RewardEnsemble) -> torch.Tensor:
        inputs = np.concatenate([episodes.observations, _held(episodes.actions)], axis=2)
        return ensemble.reward(torch.from_numpy(inputs).flatten(0, 1)).view(episodes.true_rewards.shape)

    def _clips(self, episodes: Episodes, number: int) -> Clips:
        length, (count, steps) = self._task.clip_steps, episodes.true_rewards.shape
        dice = np.random.default_rng([self._seed, number, 2])
        starts = dice.integers(steps - length + 1, size=(count, CLIPS_PER_EPISODE))
        places = starts[..., None] + np.arange(length)
        rows = np.arange(count)[:, None, None]
        return Clips(
            episodes.observations[rows, places].reshape(-1, length, episodes.observations.shape[2]),
            _held(episodes.actions)[rows, places].reshape(-1, length, episodes.actions.shape[2]),
            episodes.true_rewards[rows, places].sum(2).reshape(-1).astype(np.float32),
        )


def _held(actions: np.ndarray) -> np.ndarray:
    """Return actions as the environment takes them: no larger than the largest."""
    return actions.clip(-1, 1)


def _correlation(predicted: torch.Tensor, true: torch.Tensor) -> float:
    """Correlate the rewards of single steps."""
    return float(torch.corrcoef(torch.stack([predicted.flatten(), true.flatten()]))[0, 1])

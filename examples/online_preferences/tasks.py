"""The control tasks: gymnasium's, in episodes of fixed length, whose end says nothing about how well it went."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from examples.online_preferences import scenes

Array = np.ndarray


@dataclass(frozen=True)
class Task:
    """A task and what a judge is told about it.

    Episodes do not end when the environment says so: it begins anew within the episode, unseen by the agent. An end
    would tell the agent about the reward that it is to learn from choices alone (Christiano et al. 2017, section A.1).
    """

    environment: str
    """Name in gymnasium."""
    question: tuple[str, str]
    """What the better clip shows, in Chinese and English."""
    steps: int
    """Of an episode."""
    clip_steps: int
    """Of a clip: about a second and a half."""
    frames_per_second: float
    scale: tuple[float, ...]
    """Size of each number of an observation, by which networks see it as about 1."""
    actions: int
    """Choices, or numbers of a continuous action."""
    action_scale: float | None
    """Largest continuous action; None where the agent chooses among `actions`."""
    reward: Callable[[Array, Array, float, bool], float]
    """True reward of a step, from observation before, action, the environment's own reward, and whether it ended."""
    scene: Callable[[Array], scenes.Scene]
    """Draws the observations of a clip [frames, features]."""
    gamma: float

    @property
    def discrete(self) -> bool:
        """Whether an action is a choice."""
        return self.action_scale is None


def _balanced(observation: Array, action: Array, reward: float, ended: bool) -> float:
    """Return 1 in the middle and upright, less towards the edges at which the environment gives up, -1 beyond."""
    return -1.0 if ended else 1.0 - 0.5 * (observation[2] / 0.2095) ** 2 - 0.5 * (observation[0] / 2.4) ** 2


TASKS = {
    "pendulum": Task(
        environment="Pendulum-v1",
        question=(
            "哪一段里摆杆更接近直立且静止？",
            "In which clip is the pendulum nearer to standing upright and still?",
        ),
        steps=200,
        clip_steps=30,
        frames_per_second=20,
        scale=(1.0, 1.0, 8.0),
        actions=1,
        action_scale=2.0,
        reward=lambda observation, action, reward, ended: reward,
        scene=scenes.pendulum,
        gamma=0.95,
    ),
    "cartpole": Task(
        environment="CartPole-v1",
        question=(
            "哪一段里杆子立得更稳、小车更靠近中间？",
            "In which clip does the pole stand better, with the cart nearer to the middle?",
        ),
        steps=200,
        clip_steps=50,
        frames_per_second=50,
        scale=(2.4, 2.0, 0.2095, 2.0),
        actions=2,
        action_scale=None,
        reward=_balanced,
        scene=scenes.cartpole,
        gamma=0.98,
    ),
}


@dataclass(frozen=True)
class Episodes:
    """Episodes of a round, all of the same length."""

    observations: Array
    """[episodes, steps, features], as networks see them."""
    actions: Array
    """[episodes, steps, numbers]: the policy's own numbers, or one-hot choices."""
    logprobs: Array
    """[episodes, steps] of the policy that acted."""
    last: Array
    """[episodes, features]: what is seen after the last step."""
    true_rewards: Array
    """[episodes, steps]."""


Act = Callable[[Array], tuple[Array, Array, Array]]
"""From observations [episodes, features]: what the environments get, how it is kept, log-probabilities."""


class Course:
    """Several copies of an environment that are walked through side by side."""

    def __init__(self, task: Task, copies: int) -> None:
        self.task = task
        # Without the wrappers: episodes end by their length alone, which is counted here.
        self._copies: list[Any] = [gymnasium.make(task.environment).unwrapped for _ in range(copies)]
        self._scale = np.asarray(task.scale, dtype=np.float32)

    @property
    def copies(self) -> int:
        """Episodes of one walk."""
        return len(self._copies)

    def walk(self, act: Act, seed: list[int]) -> Episodes:
        """Walk one episode in each copy, from starts that the seed decides."""
        starts = np.random.default_rng(seed).integers(2**31, size=len(self._copies))
        now = np.stack([copy.reset(seed=int(start))[0] for copy, start in zip(self._copies, starts, strict=True)])
        kept: list[tuple[Array, ...]] = []
        for _ in range(self.task.steps):
            seen = (now / self._scale).astype(np.float32)
            orders, actions, logprobs = act(seen)
            now, rewards = self._step(now, orders)
            kept.append((seen, actions, logprobs, rewards))
        observations, actions, logprobs, rewards = (np.stack(column, axis=1) for column in zip(*kept, strict=True))
        return Episodes(observations, actions, logprobs, (now / self._scale).astype(np.float32), rewards)

    def _step(self, now: Array, orders: Array) -> tuple[Array, Array]:
        following, rewards = [], []
        for copy, before, order in zip(self._copies, now, orders, strict=True):
            after, reward, ended, _, _ = copy.step(order)
            rewards.append(self.task.reward(before, order, float(reward), ended))
            following.append(copy.reset()[0] if ended else after)
        return np.stack(following), np.asarray(rewards, dtype=np.float32)

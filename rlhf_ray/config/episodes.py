"""A rollout in several turns, and the environments that answer the policy in it."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.files import class_problem
from rlhf_ray.config.numbers import Seconds, Share, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.reading.documents import Problem
from rlhf_ray.config.rollout import RolloutConfig

ENVIRONMENT = "environment"
"""Name of an environment's rewards beside those of the reward sources."""


class PythonEnvironment(Section):
    """A Python class; each episode has an instance in a process of its own."""

    kind: Literal["python"]
    """Chooses this kind."""

    path: PathText
    """`file.py:Class`, with reset(prompt, seed, **columns) and step(turn) -> rlhf_ray.Reply."""

    seconds: Seconds = 30
    """Limit of one call; past it the environment is ended, and its episode has no reward."""

    failed_episodes: Share = 0.1
    """Share of episodes whose environment may fail; they are counted and not learned from. Past it the job stops."""

    def problems(self) -> Iterator[Problem]:
        """Find a class that is not written as one."""
        file, colon, name = self.path.rpartition(":")
        if not (colon and file.endswith(".py") and name.isidentifier()):
            yield Problem(("path",), f"is written file.py:Class, not {self.path!r}")

    def missing(self) -> Iterator[Problem]:
        """Find a file that is not there, or has no such class."""
        yield from class_problem(("path",), self.path)


class EpisodeRolloutConfig(RolloutConfig):
    """vLLM engines, one a worker; with an environment, a policy that answers in several turns."""

    environment: PythonEnvironment | None = None
    """What answers the policy's turns, such as `{kind: python, path: guess.py:Guess}`. None: one answer is all."""

    max_turns: Annotated[int, Field(ge=1, le=1000)] = 8
    """Most turns of the policy in an episode; only with an environment."""

    max_turn_tokens: Tokens | None = None
    """Longest turn of the policy, where max_new_tokens counts all turns and what is answered to them. None: no limit of
    its own."""

    def of_episodes(self) -> list[str]:
        """Return the keys of episodes that differ from their defaults."""
        names = (ENVIRONMENT, "max_turns", "max_turn_tokens")
        return [name for name in names if dict(self)[name] != type(self).model_fields[name].default]

    def episode_problems(self, call_seconds: float) -> Iterator[Problem]:
        """Find what is wrong with turns and environment, by its own keys.

        Args:
            call_seconds: for which a step may stand still.
        """
        if self.environment is None:
            for name in self.of_episodes():
                yield Problem((name,), "has no effect without rollout.environment; set that, or leave this out")
            return
        for problem in self.environment.problems():
            yield Problem((ENVIRONMENT, *problem.key), problem.message)
        if self.environment.seconds > call_seconds:
            text = (
                f"{self.environment.seconds:g} is more than cluster.deadlines.call_seconds, {call_seconds:g}, after "
                "which a step that stands still is given up; lower it, or raise that"
            )
            yield Problem((ENVIRONMENT, "seconds"), text)
        if self.max_turn_tokens is not None and self.max_turn_tokens > self.max_new_tokens:
            text = f"{self.max_turn_tokens} is more than max_new_tokens, {self.max_new_tokens}, which all turns share"
            yield Problem(("max_turn_tokens",), text)
        # A turn is a token at least, and so is what stands between two.
        if self.max_turns > 1 and self.max_new_tokens < 2 * self.max_turns - 1:
            text = f"{self.max_new_tokens} has no room for max_turns {self.max_turns} with what stands between them"
            yield Problem(("max_new_tokens",), text)

"""A rollout in several turns, and the environments that answer the policy in it."""

import json
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.files import class_problem, function_problem
from rlhf_ray.config.numbers import Seconds, Share, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.reading.documents import Problem
from rlhf_ray.config.rollout import RolloutConfig

ENVIRONMENT = "environment"
"""Name of an environment's rewards beside those of the reward sources."""


class _Environment(Section):
    """Settings that all environments share."""

    gives_rewards: ClassVar[bool]
    """Whether it rewards turns."""

    seconds: Seconds = 30
    """Limit of one call of the environment, or of all tools that a turn calls. Past it an environment is ended, and its
    episode has no reward; a tool is ended, and the policy is told."""

    failed_episodes: Share = 0.1
    """Share of episodes whose environment may fail; they are counted and not learned from. Past it the job stops."""


class PythonEnvironment(_Environment):
    """A Python class; each episode has an instance in a process of its own."""

    gives_rewards = True

    kind: Literal["python"] = "python"
    """Chooses this kind."""

    path: PathText
    """`file.py:Class`, with reset(prompt, seed, **columns) and step(turn) -> rlhf_ray.Reply."""

    @property
    def file(self) -> str:
        """The file of the class."""
        return self.path.rpartition(":")[0]

    @property
    def shown_name(self) -> str:
        """The class."""
        return self.path.rpartition(":")[2]

    @property
    def loaded_name(self) -> str:
        """The class as the environments' process is told of it."""
        return json.dumps({"class": self.shown_name})

    def problems(self) -> Iterator[Problem]:
        """Find a class that is not written as one."""
        file, colon, name = self.path.rpartition(":")
        if not (colon and file.endswith(".py") and name.isidentifier()):
            yield Problem(("path",), f"is written file.py:Class, not {self.path!r}")

    def missing(self) -> Iterator[Problem]:
        """Find a file that is not there, or has no such class."""
        yield from class_problem(("path",), self.path)


class ToolsEnvironment(_Environment):
    """Python functions that the policy may call; a turn without a call ends the episode, which reward sources judge."""

    gives_rewards = False

    kind: Literal["tools"] = "tools"
    """Chooses this kind."""

    file: PathText
    """The file of the functions."""

    functions: list[str] = Field(min_length=1)
    """Their names; type hints and docstrings say what the policy is told of them."""

    @property
    def shown_name(self) -> str:
        """The functions."""
        return ",".join(self.functions)

    @property
    def loaded_name(self) -> str:
        """The functions as the environments' process is told of them."""
        return json.dumps({"functions": self.functions, "seconds": self.seconds})

    def problems(self) -> Iterator[Problem]:
        """Find names that are none, or stand twice, and a file that is no Python."""
        if not self.file.endswith(".py"):
            yield Problem(("file",), f"is a Python file, such as calculator.py, not {self.file!r}")
        for place, name in enumerate(self.functions):
            if not name.isidentifier():
                yield Problem(("functions", place), f"{name!r} is no name of a function")
            elif name in self.functions[:place]:
                yield Problem(("functions", place), f"{name} is there already")

    def missing(self) -> Iterator[Problem]:
        """Find a file that is not there, or has no such function."""
        for place, name in enumerate(self.functions):
            found = list(function_problem(("functions", place), f"{self.file}:{name}"))
            yield from found
            if found and "no such file" in found[0].message:
                return


EnvironmentConfig = PythonEnvironment | ToolsEnvironment


class EpisodeRolloutConfig(RolloutConfig):
    """vLLM engines, one a worker; with an environment, a policy that answers in several turns."""

    environment: EnvironmentConfig | None = Field(default=None, discriminator="kind")
    """What answers the policy's turns, such as `{kind: python, path: guess.py:Guess}`, or tools. None: one answer is
    all."""

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
        if isinstance(self.environment, ToolsEnvironment):
            if self.skip_special_tokens:
                text = "leaves out the marks of calls, by which tools are found; leave it out"
                yield Problem(("skip_special_tokens",), text)
            if self.max_turns == 1:
                yield Problem(
                    ("max_turns",), "1 ends an episode before the policy reads what a tool gave; set 2 or more"
                )
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

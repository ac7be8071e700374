"""Functions of the user's as tools: an environment that answers each call, and ends where a turn calls none."""

import asyncio
import inspect
import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from rlhf_ray.rollout.replies import Reply
from rlhf_ray.scoring.user_code import text_of

SHOWN = 200
"""Characters of a wrong call that the policy is shown."""

Tools = Mapping[str, Callable[..., Any]]


class Toolbox:
    """Tools for one episode. What goes wrong in a call is told to the policy, and is no failure of the environment."""

    def __init__(self, tools: Tools, seconds: float) -> None:
        """Take functions by name, and the limit of all calls of a turn together."""
        self._tools, self._seconds = tools, seconds

    def reset(self) -> None:
        """Begin; there is nothing to prepare."""

    def step(self, turn: Mapping[str, Any]) -> Reply:
        """Answer all calls of a turn in their order; a turn without any is the last."""
        calls = turn.get("tool_calls", [])
        end = time.monotonic() + self._seconds
        results = [self._answer(end, call["id"], **call["function"]) for call in calls]
        return Reply(results, ended=not calls)

    def _answer(self, end: float, number: str, name: str, arguments: Any) -> dict[str, Any]:
        try:
            content = self._call(name, arguments, end - time.monotonic())
        except WrongCall as error:
            content = f"Error: {error}"
        return {"role": "tool", "name": name, "tool_call_id": number, "content": content}

    def _call(self, name: str, arguments: Any, seconds: float) -> str:
        """Call a tool, and return what it gave as a text: JSON, where it is no text.

        Raises:
            WrongCall: there is no such tool, it was called wrongly, it raised, or it did not return in time.
        """
        if not name:
            raise WrongCall(f"this call cannot be read: {str(arguments)[:SHOWN]}")
        if name not in self._tools:
            raise WrongCall(f"there is no tool {name!r}; the tools are: {', '.join(self._tools)}")
        if not isinstance(arguments, dict):
            raise WrongCall(f"the arguments of {name} are no JSON object: {str(arguments)[:SHOWN]}")
        tool = self._tools[name]
        try:
            inspect.signature(tool).bind(**arguments)
        except TypeError as error:
            raise WrongCall(f"{name}: {error}") from error
        if seconds <= 0:
            raise WrongCall(f"{name} was not called: earlier calls of this turn took all of its {self._seconds:g} s")
        try:
            with _limited(seconds):
                result = tool(**arguments)
                result = asyncio.run(result) if inspect.iscoroutine(result) else result
                return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
        except _Late:
            raise WrongCall(f"{name} did not return within the {self._seconds:g} s of a turn") from None
        except Exception as error:
            raise WrongCall(f"{name}: {text_of(error)}") from error


class WrongCall(Exception):
    """A call that has no result; the message is for the policy."""


class _Late(BaseException):
    """The time of a call is over; no `except Exception` of a tool catches it."""


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise _Late in the block after so many seconds, again and again, should it be caught.

    The main thread alone can be interrupted so, and an environment has this one for itself. Compiled code that does not
    come back is ended with the environment.
    """

    def late(_: int, __: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds, min(seconds, 1.0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

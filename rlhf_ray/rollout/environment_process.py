"""The process from which environments are forked: `python -m rlhf_ray.rollout.environment_process FD FILE NAME`.

NAME is JSON: `{"class": NAME}`, or `{"functions": [NAME, ...], "seconds": LIMIT}` for tools. The user's file is
imported once. Each environment is then a child of its own, which costs milliseconds, answers over a socket of its own,
and ends with all that it started when the parent says so, or is gone.
"""

import asyncio
import gc
import inspect
import json
import math
import numbers
import os
import pickle
import random
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from types import ModuleType
from typing import Any

from rlhf_ray.rollout.replies import Reply
from rlhf_ray.rollout.toolbox import Toolbox
from rlhf_ray.scoring.user_code import accepted, explain, import_file, introduce, leave_with_parent

LENGTH = struct.Struct(">I")
"""Before each message, how many bytes it has. What comes in is pickled, since columns may be anything; what goes out is
JSON, since the code is the user's."""

OPEN, END = "open", "end"
"""What the parent asks for, each with the number of an environment; a socket comes behind `open`."""


class BadAnswer(Exception):
    """The user's code returned what it should not; the message says what."""


def main() -> None:
    """Fork environments until the parent is gone."""
    introduced = introduce(load_environment, lambda loaded: loaded.tools)
    if introduced is None:
        return
    connection, loaded = introduced
    gc.freeze()
    children: dict[int, int] = {}
    """Process by number."""
    dying: set[int] = set()
    try:
        while True:
            kind, number = connection.recv()
            if kind == OPEN:
                children[number] = _fork(loaded.make, sys.argv[2], recv_handle(connection), connection)
            elif number in children:
                dying.add(_killed(children.pop(number)))
            dying = {child for child in dying if os.waitpid(child, os.WNOHANG)[0] == 0}
    except (EOFError, ConnectionError):
        for child in children.values():
            _killed(child)


@dataclass(frozen=True)
class Loaded:
    """The way to an environment, and what may be called in it."""

    make: Callable[[], Any]
    tools: list[dict[str, Any]]
    """JSON schemas."""


def load_environment(file: str, name: str) -> Loaded:
    """Import `file` and return its class, or its functions as tools.

    Raises:
        AttributeError, TypeError, ValueError: it has none, or they cannot be one. Whatever the file raises.
    """
    module, named = import_file(file), json.loads(name)
    if "class" in named:
        make = _class(module, file, named["class"])
        return Loaded(make, [_schema(tool, file) for tool in getattr(make, "tools", ())])
    tools = {name: _function(module, file, name) for name in named["functions"]}
    schemas = [_schema(tool, file) for tool in tools.values()]
    names = [schema["function"]["name"] for schema in schemas]
    return Loaded(partial(Toolbox, dict(zip(names, tools.values(), strict=True)), named["seconds"]), schemas)


def _class(module: ModuleType, file: str, name: str) -> Callable[[], Any]:
    if not hasattr(module, name):
        defined = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise AttributeError(f"{file} has no class {name}; it defines: {', '.join(defined) or 'none'}")
    make: Any = getattr(module, name)
    if not callable(make):
        raise TypeError(f"{name} in {file} is no class but {type(make).__name__}")
    for method in ("reset", "step"):
        if inspect.isclass(make) and not callable(getattr(make, method, None)):
            raise TypeError(f"{name} in {file} has no method {method}")
    return make


def _function(module: ModuleType, file: str, name: str) -> Callable[..., Any]:
    function: Any = getattr(module, name, None)
    if not callable(function):
        defined = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise AttributeError(f"{file} has no function {name}; it defines: {', '.join(defined) or 'none'}")
    return function


def _schema(tool: Any, file: str) -> dict[str, Any]:
    """Return a tool's JSON schema: as it is given, or from the type hints and the docstring of a function."""
    if isinstance(tool, dict):
        return tool
    from transformers.utils.chat_template_utils import get_json_schema

    try:
        return get_json_schema(tool)
    except Exception as error:
        name = getattr(tool, "__name__", tool)
        raise ValueError(
            f"{name} in {file} needs type hints, and a docstring that says what it does, with a line for each argument "
            f"under `Args:`: {error}"
        ) from error


def _fork(make: Callable[[], Any], file: str, descriptor: int, connection: Connection) -> int:
    """Return the process of an environment that serves over a socket; the socket is closed here.

    It has a session of its own, so that whatever it starts ends with it.
    """
    child = os.fork()
    if child:
        os.close(descriptor)
        return child
    status = 1
    try:
        os.setsid()
        connection.close()
        leave_with_parent()
        with socket.socket(fileno=descriptor) as stream:
            _serve(make, file, stream)
        status = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _killed(child: int) -> int:
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    # It may not have made its session yet.
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return child


def _serve(make: Callable[[], Any], file: str, stream: socket.socket) -> None:
    """Make an environment and answer calls of its methods, until one fails or the parent closes the socket."""
    own = os.getpid()
    environment: Any = None
    # Entered by the first asynchronous method alone: a loop takes as long to make as all the rest.
    runner = asyncio.Runner()
    with closing(runner), stream.makefile("rb") as calls:
        while head := calls.read(LENGTH.size):
            method, arguments = pickle.loads(calls.read(*LENGTH.unpack(head)))
            try:
                if method == "reset":
                    _seed(arguments["seed"])
                    environment = make()
                answer = _called(environment, method, arguments, runner)
            except BadAnswer as error:
                answer = {"failed": "malformed answer", "message": f"{file}: {method} {error}"}
            except Exception as error:
                answer = {"failed": "raised", "message": f"{method}: {explain(error, file)}"}
            if os.getpid() != own:
                os._exit(1)  # the code forked a process that came back from it
            content = json.dumps(answer).encode("utf-8", "surrogatepass")
            stream.sendall(LENGTH.pack(len(content)) + content)


def _seed(seed: int) -> None:
    """Seed what would else be alike in all children."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed)


def _called(environment: Any, method: str, arguments: Mapping[str, Any], runner: asyncio.Runner) -> dict[str, Any]:
    """Call a method, awaited where it is asynchronous, and return its answer as JSON can hold it."""
    function = getattr(environment, method, None)
    if function is None and method == "close":
        return {}
    if function is None:
        raise BadAnswer("is no method of it")
    if method == "reset":
        arguments = {"prompt": arguments["prompt"], "seed": arguments["seed"], **arguments["columns"]}
        arguments = accepted(function, arguments)
    result = function(**arguments) if method == "reset" else function(*arguments)
    if inspect.iscoroutine(result):
        result = runner.run(result)
    if method == "reset":
        return {"messages": _messages(() if result is None else result)}
    return {} if method == "close" else _answer(result)


def _answer(result: Any) -> dict[str, Any]:
    if not isinstance(result, Reply):
        raise BadAnswer(f"returned {type(result).__name__}; return rlhf_ray.Reply")
    reward = result.reward.item() if hasattr(result.reward, "item") else result.reward
    if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
        raise BadAnswer(f"returned the reward {reward!r}; give a finite number")
    return {"messages": _messages(result.messages), "reward": float(reward), "ended": bool(result.ended)}


def _messages(said: Any) -> list[dict[str, Any]]:
    if isinstance(said, str):
        return [{"role": "user", "content": said}]
    if not isinstance(said, Sequence):
        raise BadAnswer(f"returned {type(said).__name__} for messages; return a text, or a list of messages")
    for message in said:
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(text, str) for text in texts):
            raise BadAnswer(f"returned {message!r} for a message; it has `role` and `content`, which are texts")
    try:
        json.dumps(said)
    except (TypeError, ValueError) as error:
        raise BadAnswer(f"returned messages that JSON cannot hold: {error}") from error
    return [dict(message) for message in said]


if __name__ == "__main__":
    main()

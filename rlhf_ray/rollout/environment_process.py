"""The process from which environments are forked: `python -m rlhf_ray.rollout.environment_process FD FILE NAME`.

It imports the user's file once. Each environment is then a child of its own, which costs milliseconds, answers over a
socket of its own, and ends with all that it started when the parent says so, or is gone.
"""

import asyncio
import contextlib
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
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from typing import Any

from rlhf_ray.rollout.replies import Reply
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
    introduced = introduce(load_environment)
    if introduced is None:
        return
    connection, make = introduced
    gc.freeze()
    children: dict[int, int] = {}
    """Process by number."""
    dying: set[int] = set()
    try:
        while True:
            kind, number = connection.recv()
            if kind == OPEN:
                children[number] = _fork(make, sys.argv[2], recv_handle(connection), connection)
            elif number in children:
                dying.add(_killed(children.pop(number)))
            dying = {child for child in dying if os.waitpid(child, os.WNOHANG)[0] == 0}
    except (EOFError, ConnectionError):
        for child in children.values():
            _killed(child)


def load_environment(file: str, name: str) -> Callable[[], Any]:
    """Import `file` and return its class.

    Raises:
        AttributeError, TypeError: no such class, or one without `step`. Whatever the file raises when it is imported.
    """
    module = import_file(file)
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
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    # It may not have made its session yet.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    return child


def _serve(make: Callable[[], Any], file: str, stream: socket.socket) -> None:
    """Make an environment and answer calls of its methods, until one fails or the parent closes the socket."""
    own = os.getpid()
    environment: Any = None
    with asyncio.Runner() as runner, stream.makefile("rb") as calls:
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

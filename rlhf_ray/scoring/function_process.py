"""The process in which a reward function runs: `python -m rlhf_ray.scoring.function_process FD FILE NAME`.

It talks over one inherited connection, so that whatever the function prints goes to the log and cannot disturb it.
"""

import asyncio
import importlib.util
import inspect
import math
import numbers
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf_ray.redaction.process import hide_secrets
from rlhf_ray.redaction.texts import redact_text

PARENT_CHECK_SECONDS = 1.0

Reply = tuple[str, Any]
"""("values", Values), ("ready", None), or (kind of failure, message)."""

Values = tuple[list[float | None], list[tuple[str, int, str]]]
"""A score for each completion, and kind of failure, position and reason of each that is none, whose score is NaN."""


def main() -> None:
    """Load the function, say so, then answer batches until the connection closes.

    Each answer bears the number of its batch and the id of this process, so that nothing else can pass for it.
    """
    hide_secrets()
    descriptor, file, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.set_inheritable(descriptor, False)
    own = os.getpid()
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()
    connection = Connection(descriptor)
    try:
        function = load_function(file, name)
    except Exception as error:
        connection.send((0, own, "unusable", _explain(error, file)))
        return
    connection.send((0, own, "ready", None))
    while True:
        try:
            number, prompts, completions, columns = connection.recv()
        except EOFError:
            return
        kind, answer = _call(function, file, name, prompts, completions, columns)
        if os.getpid() != own:
            print(f"{file}:{name} forked a process that came back from it; it ends here", file=sys.stderr, flush=True)
            os._exit(1)
        connection.send((number, own, kind, answer))


def load_function(file: str, name: str) -> Callable[..., Any]:
    """Import `file` as a module of its own and return its function.

    Raises:
        AttributeError, TypeError: no such function. Whatever the file raises when it is imported.
    """
    # The file's neighbours can be imported, as when it is run as a script.
    sys.path.insert(0, str(Path(file).resolve().parent))
    specification = importlib.util.spec_from_file_location("reward_function", file)
    if specification is None or specification.loader is None:
        raise TypeError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module
    # The folder is the user's, who did not ask for a __pycache__ in it.
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        specification.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = writes
    if not hasattr(module, name):
        defined = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise AttributeError(f"{file} has no function {name}; it defines: {', '.join(defined) or 'none'}")
    function: Any = getattr(module, name)
    if not callable(function):
        raise TypeError(f"{name} in {file} is no function but {type(function).__name__}")
    return function


def _call(
    function: Callable[..., Any], file: str, name: str, prompts: list[Any], completions: list[Any], columns: dict
) -> Reply:
    try:
        result = function(prompts=prompts, completions=completions, **_accepted(function, columns))
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except Exception as error:
        return "raised", _explain(error, file)
    where = f"{file}:{name}"
    try:
        scores = result.tolist() if hasattr(result, "tolist") else result
        if not isinstance(scores, list | tuple):
            found = type(result).__name__
            return "wrong type", f"{where} returned {found}; return a list with a score for each completion"
        scores = list(scores)
    except Exception as error:
        return "wrong type", f"{where} returned something that cannot be read as a list: {_text(error)}"
    if len(scores) != len(completions):
        return "wrong count", f"{where} returned {len(scores)} scores for {len(completions)} completions"
    return "values", _values(scores, where)


def _values(scores: list[Any], where: str) -> Values:
    """Return scores as numbers; one that is none fails alone."""
    values: list[float | None] = []
    broken: list[tuple[str, int, str]] = []
    for row, score in enumerate(scores):
        values.append(math.nan)
        try:
            score = score.item() if hasattr(score, "item") else score
            if score is not None and not isinstance(score, numbers.Real):
                raise TypeError
            value = None if score is None else float(score)
        except TypeError:
            found = f"{where} returned {type(score).__name__} for completion {row}"
            broken.append(("wrong type", row, f"{found}; return a number or None"))
        except Exception as error:
            found = f"{where} returned {type(score).__name__} for completion {row}, which is no number: {_text(error)}"
            broken.append(("wrong type", row, f"{found}; return a number or None"))
        else:
            values[row] = value
            if value is not None and not math.isfinite(value):
                values[row] = math.nan
                reason = "return a finite number, or None where the function does not apply"
                broken.append(("not a number", row, f"{where} returned {value} for completion {row}; {reason}"))
    return values, broken


def _accepted(function: Callable[..., Any], columns: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that the function names, or all if it takes any."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return columns
    return {name: values for name, values in columns.items() if name in parameters}


def _explain(error: Exception, file: str) -> str:
    """Describe the error with the line of the user's file in which it arose."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == Path(file).resolve()
    ]
    line = f":{frames[-1].lineno}" if frames else ""
    if isinstance(error, SyntaxError) and error.lineno:
        line = f":{error.lineno}"
    return f"{file}{line}: {_text(error)}"


def _text(error: Exception) -> str:
    """Name and message of an error, whose own code may fail too; only this process may know the secrets in it."""
    try:
        return redact_text(f"{type(error).__name__}: {error}")
    except Exception as another:
        return f"{type(error).__name__} (its message cannot be read: {type(another).__name__})"


def _leave_with_parent(parent: int) -> None:
    """End this process and those that the function started once the parent is gone, even while the function hangs."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()

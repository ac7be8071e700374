"""The process in which a reward function runs: `python -m rlhf_ray.scoring.function_process FD FILE NAME`."""

import asyncio
import inspect
import math
import numbers
import os
import sys
from collections.abc import Callable
from typing import Any

from rlhf_ray.scoring.user_code import accepted, explain, import_file, introduce, text_of

Reply = tuple[str, Any]
"""("values", Values), ("ready", None), or (kind of failure, message)."""

Values = tuple[list[float | None], list[tuple[str, int, str]]]
"""A score for each completion, and kind of failure, position and reason of each that is none, whose score is NaN."""


def main() -> None:
    """Load the function, say so, then answer batches until the connection closes."""
    introduced = introduce(load_function)
    if introduced is None:
        return
    connection, function = introduced
    file, name, own = sys.argv[2], sys.argv[3], os.getpid()
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
    module = import_file(file)
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
        result = function(prompts=prompts, completions=completions, **accepted(function, columns))
        if inspect.iscoroutine(result):
            result = asyncio.run(result)
    except Exception as error:
        return "raised", explain(error, file)
    where = f"{file}:{name}"
    try:
        scores = result.tolist() if hasattr(result, "tolist") else result
        if not isinstance(scores, list | tuple):
            found = type(result).__name__
            return "wrong type", f"{where} returned {found}; return a list with a score for each completion"
        scores = list(scores)
    except Exception as error:
        return "wrong type", f"{where} returned something that cannot be read as a list: {text_of(error)}"
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
            found = (
                f"{where} returned {type(score).__name__} for completion {row}, which is no number: {text_of(error)}"
            )
            broken.append(("wrong type", row, f"{found}; return a number or None"))
        else:
            values[row] = value
            if value is not None and not math.isfinite(value):
                values[row] = math.nan
                reason = "return a finite number, or None where the function does not apply"
                broken.append(("not a number", row, f"{where} returned {value} for completion {row}; {reason}"))
    return values, broken


if __name__ == "__main__":
    main()

"""The inside of a process that runs code of the user's from a file: `python -m MODULE FD FILE NAME`.

It talks over one inherited connection, so that whatever the code prints goes to the log and cannot disturb it.
"""

import importlib.util
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from rlhf_ray.redaction.process import hide_secrets
from rlhf_ray.redaction.texts import redact_text

PARENT_CHECK_SECONDS = 1.0

Loaded = TypeVar("Loaded")


def introduce(
    load: Callable[[str, str], Loaded], describe: Callable[[Loaded], Any] = lambda _: None
) -> tuple[Connection, Loaded] | None:
    """Load what the command line names and tell the parent: "ready", or "unusable" and why, which returns None.

    Each answer bears its number and the id of this process, so that nothing else can pass for it; this one has 0.

    Args:
        load: gets file and name.
        describe: says what the parent shall know of what is loaded.
    """
    hide_secrets()
    descriptor, file, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.set_inheritable(descriptor, False)
    leave_with_parent()
    connection = Connection(descriptor)
    try:
        loaded = load(file, name)
        description = describe(loaded)
    except Exception as error:
        connection.send((0, os.getpid(), "unusable", explain(error, file)))
        return None
    connection.send((0, os.getpid(), "ready", description))
    return connection, loaded


def import_file(file: str) -> ModuleType:
    """Import a file as a module of its own. Raises TypeError where it is no Python, and whatever the file raises."""
    # The file's neighbours can be imported, as when it is run as a script.
    sys.path.insert(0, str(Path(file).resolve().parent))
    specification = importlib.util.spec_from_file_location("user_code", file)
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
    return module


def accepted(function: Callable[..., Any], columns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the columns that the function names, or all if it takes any."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return columns
    return {name: values for name, values in columns.items() if name in parameters}


def explain(error: Exception, file: str) -> str:
    """Describe the error with the line of the user's file in which it arose."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == Path(file).resolve()
    ]
    line = f":{frames[-1].lineno}" if frames else ""
    if isinstance(error, SyntaxError) and error.lineno:
        line = f":{error.lineno}"
    return f"{file}{line}: {text_of(error)}"


def text_of(error: Exception) -> str:
    """Name and message of an error, whose own code may fail too; only this process may know the secrets in it."""
    try:
        return redact_text(f"{type(error).__name__}: {error}")
    except Exception as another:
        return f"{type(error).__name__} (its message cannot be read: {type(another).__name__})"


def leave_with_parent() -> None:
    """End this process and those that it started once its parent is gone, even while the code hangs."""
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os.killpg(0, signal.SIGKILL)

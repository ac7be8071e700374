"""Settings that name a file, a folder, a URL or a model or data set of the hub."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes of one name, and of a path, that Linux takes."""


def _can_be_looked_up(path: str) -> str:
    if problem := path_problem(path):
        raise ValueError(problem)
    return path


def path_problem(path: str) -> str:
    """Return why the system could not even look a path up; nothing where it could. URLs are left to their service."""
    if "\0" in path:
        return "holds a NUL character, which no path does"
    if "://" in path:
        return ""
    if len(path.encode(errors="surrogateescape")) > LONGEST_PATH:
        return f"is longer than a path can be, {LONGEST_PATH} bytes"
    if any(len(name.encode(errors="surrogateescape")) > LONGEST_NAME for name in path.split("/")):
        return f"holds a name longer than a file's can be, {LONGEST_NAME} bytes"
    try:
        Path(path).expanduser()
    except RuntimeError:
        return f"there is no user {path.split('/')[0][1:]!r} whose home {path.split('/')[0]} would be"
    return ""


PathText = Annotated[str, AfterValidator(_can_be_looked_up)]


def only(value: Any) -> Any:
    """Return the one of a list of one, as which the command gives an argument without a name."""
    if isinstance(value, list) and len(value) != 1:
        raise ValueError(f"one at a time, not {len(value)}")
    return value[0] if isinstance(value, list) else value


OnePath = Annotated[PathText, BeforeValidator(only)]
"""A path that the command takes without a name."""

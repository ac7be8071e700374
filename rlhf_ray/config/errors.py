"""Errors for the person who runs a job: what was wrong, where, and what to do. They are shown without a traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class RlhfError(Exception):
    """A failure that its reader can act on. The command prints the message alone and exits with `exit_code`."""

    exit_code = 1


class BadInput(RlhfError):
    """A config, file or argument that cannot be used; found before anything was started or written."""

    exit_code = 2


class Interrupted(RlhfError):
    """Ctrl-C or SIGTERM ended a job before it could save; the message says what there is."""

    exit_code = 130
    """What shells report for a command that Ctrl-C ended."""


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name most like `name`, or one that begins with it; None if there is none."""
    names = list(valid)
    beginning = [one for one in names if one.startswith(name)] if name else []
    return next(iter([*get_close_matches(name, names, n=1), *beginning]), None)


def perhaps(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return `. Perhaps you meant PREFIXNAME?`, or nothing where no valid name is near."""
    found = nearest(name, valid)
    return f". Perhaps you meant {prefix}{found}?" if found else ""

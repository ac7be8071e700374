"""Errors for the person who runs a job: what was wrong, where, and what to do. They are shown without a traceback."""


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

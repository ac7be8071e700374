"""Waiting for remote calls: a deadline for each; failures sorted into machine and code, with role, rank and phase."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleError, RoleFailed, RoleRaised
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.redaction.process import hide_in_error
from rlhf_ray.redaction.texts import redact_text

# When a rank dies its peers raise "connection closed" at about the same time; the death is what the user must see.
GRACE_SECONDS = 3.0

COLOUR = re.compile(r"\x1b\[\d*m")

# Ray's report of a death lists ids line by line, then says what happened.
DEATH_DETAIL = re.compile(r"^\s*(class_name|actor_id|pid|name|namespace|ip): ")


class Caller(NamedTuple):
    """The worker that answers a remote call."""

    role: str
    rank: int


def wait(
    refs: Sequence[ray.ObjectRef], *, role: str, phase: str, seconds: float, ranks: Sequence[int] | None = None
) -> list[Any]:
    """Return the results of one remote call on several ranks of a role, in the order of the references.

    Args:
        refs: one reference of each rank.
        role: name of the role, for errors.
        phase: what the call does, for errors.
        seconds: deadline of the whole wait.
        ranks: rank of each reference; None: 0, 1, 2, ...

    Raises:
        DeadlineExceeded, RoleDied, RoleRaised: see `wait_together`.
    """
    callers = [Caller(role, rank) for rank in (ranks if ranks is not None else range(len(refs)))]
    return wait_together(list(zip(refs, callers, strict=True)), phase=phase, seconds=seconds)


def wait_together(
    calls: Sequence[tuple[ray.ObjectRef, Caller]],
    *,
    phase: str,
    seconds: float,
    answered: Callable[[Caller], None] = lambda caller: None,
) -> list[Any]:
    """Return the results of calls that work on one thing together, also of several roles, in the order given.

    The first failure ends the wait, also while others hang: they may wait for the one that failed.

    Args:
        calls: references and who answers them.
        phase: what the calls do, for errors.
        seconds: deadline of the whole wait.
        answered: told of each caller when its result is there.

    Raises:
        DeadlineExceeded: some did not answer in time; the first of them in the order given is named.
        RoleDied: a rank's process or node is gone.
        RoleRaised: the call raised on a rank; `__cause__` is the exception.
    """
    deadline = time.monotonic() + seconds
    callers = dict(calls)
    pending = list(callers)
    results: dict[ray.ObjectRef, Any] = {}
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            silent = [callers[ref] for ref in pending]
            ranks = sorted(caller.rank for caller in silent if caller.role == silent[0].role)
            raise DeadlineExceeded.after(seconds, silent[0].role, ranks, phase)
        for ref in ready:
            try:
                results[ref] = ray.get(ref, timeout=max(0.01, deadline - time.monotonic()))
            except GetTimeoutError:
                raise DeadlineExceeded.after(seconds, callers[ref].role, [callers[ref].rank], phase) from None
            except RayError as error:
                failure = failure_of(error, *callers[ref], phase)
                raise _root_cause(failure, pending, callers, phase) from failure.__cause__
            answered(callers[ref])
    return [results[ref] for ref, _ in calls]


def _root_cause(
    first: RoleFailed, pending: list[ray.ObjectRef], callers: dict[ray.ObjectRef, Caller], phase: str
) -> RoleFailed:
    """Return the first failure, unless a peer turns out to be dead."""
    if isinstance(first, RoleDied):
        return first
    deadline = time.monotonic() + GRACE_SECONDS
    while pending:
        ready, pending = ray.wait(pending, num_returns=1, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for ref in ready:
            try:
                ray.get(ref, timeout=0.01)
            except GetTimeoutError:
                continue
            except RayError as error:
                failure = failure_of(error, *callers[ref], phase)
                if isinstance(failure, RoleDied):
                    return failure
    return first


def failure_of(error: Exception, role: str, rank: int, phase: str) -> RoleFailed:
    """Sort Ray's error of one call; `__cause__` of the result is set."""
    failure: RoleFailed
    cause: BaseException | None = error
    hide_in_error(error)
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, BaseException) else None
        if cause is not None:
            hide_in_error(cause)
        if isinstance(cause, RayError) and not isinstance(cause, RayTaskError):
            failure = _died(cause, role, rank, phase)
        else:
            failure = _raised(cause, redact_text(plain(str(error))), role, rank, phase)
    elif isinstance(error, RayActorError) and error.actor_init_failed:
        cause = None
        failure = _raised(None, redact_text(plain(str(error))), role, rank, phase)
    else:
        failure = _died(error, role, rank, phase)
    failure.__cause__ = cause
    return failure


def _raised(cause: BaseException | None, trace: str, role: str, rank: int, phase: str) -> RoleRaised:
    if isinstance(cause, RoleError):
        # A role that waited for another one: keep that one's name in front, and one traceback.
        message = f"{cause.args[0]} (seen by {role} rank {rank} in {phase})"
    elif isinstance(cause, RlhfError):
        message = f"{cause} ({role} rank {rank}, {phase})"
    else:
        described = f"{type(cause).__name__}: {cause}" if cause is not None else last_error(trace)
        message = f"{described} ({role} rank {rank}, {phase})"
    failure = RoleRaised(redact_text(message), role, rank, phase)
    failure.trace = trace
    return failure


def _died(error: BaseException, role: str, rank: int, phase: str) -> RoleDied:
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not DEATH_DETAIL.match(line)]
    said, guesses, _ = " ".join(lines).partition(" Some common causes include")
    causes = " (killed, out of memory or crashed; the system's log may say which)" if guesses else ""
    return RoleDied(f"{role} rank {rank} died in {phase}: {said.rstrip('.')}{causes}", role, rank, phase)


def plain(text: str) -> str:
    """Remove the terminal colours that Ray puts into tracebacks."""
    return COLOUR.sub("", text)


def last_error(trace: str) -> str:
    """Return the exception at the end of a traceback's text: all that follows its last indented line."""
    lines = trace.rstrip().splitlines()
    for index in range(len(lines) - 1, -1, -1):
        if lines[index].startswith("  "):
            return "\n".join(lines[index + 1 :]).strip() or lines[index].strip()
    return trace.strip()

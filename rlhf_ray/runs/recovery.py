"""A run that goes on when the process of a model dies."""

from collections import Counter
from collections.abc import Callable, Collection
from typing import TypeVar

from rlhf_ray.cluster.errors import RoleDied, RoleLost

RESTARTS = 3
"""A worker that died is started again this often within an hour before the job gives up."""

State = TypeVar("State")
Outcome = TypeVar("Outcome")


def run_through_deaths(
    begin: Callable[[], State],
    make_steps: Callable[[State], Outcome],
    recover: Callable[[State | None, RoleDied], State],
    roles: Collection[str],
    steps_made: Callable[[], int] = lambda: 0,
) -> Outcome:
    """Make the steps of a run; what dies is started again, and the run goes on from what it still has.

    Args:
        begin: the run's state at its newest checkpoint, or at the start.
        make_steps: makes all steps that are left, and what follows the last one.
        recover: starts a dead role again; returns the state to go on from. It is given the state in which the role
            died; None where there was none yet.
        roles: which ones it can start again.
        steps_made: counts the steps of the run. A role that dies again and again without one step more in between is
            lost, however long each time took.

    Raises:
        RoleLost: a rank died too often. RoleDied: a role that is not among `roles` did.
    """
    state: State | None = None
    death: RoleDied | None = None
    most, in_vain = -1, Counter[str]()
    while True:
        try:
            # Within the same block as the steps: another role may die meanwhile.
            state = recover(state, death) if death is not None else begin()
            death = None
            return make_steps(state)
        except RoleLost:
            raise
        except RoleDied as error:
            if error.role not in roles:
                raise
            death = error
            if steps_made() > most:
                most = steps_made()
                in_vain.clear()
            in_vain[error.role] += 1
            if in_vain[error.role] > RESTARTS:
                raise RoleLost(
                    f"{error}; it is the {in_vain[error.role]}th time without a step more in between, and "
                    f"{RESTARTS} restarts are allowed",
                    error.role,
                    error.rank,
                    error.phase,
                ) from error

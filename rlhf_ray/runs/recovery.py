"""A run that goes on when the process of a model dies."""

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
    recover: Callable[[State, RoleDied], State],
    roles: Collection[str],
) -> Outcome:
    """Make the steps of a run; what dies is started again, and the run goes on from what it still has.

    Args:
        begin: the run's state at its newest checkpoint, or at the start.
        make_steps: makes all steps that are left.
        recover: starts a dead role again; returns the state to go on from.
        roles: which ones it can start again.

    Raises:
        RoleLost: a rank died too often. RoleDied: a role that is not among `roles` did.
    """
    state = begin()
    death: RoleDied | None = None
    while True:
        try:
            # Within the same block as the steps: another role may die meanwhile.
            if death is not None:
                state, death = recover(state, death), None
            return make_steps(state)
        except RoleLost:
            raise
        except RoleDied as error:
            if error.role not in roles:
                raise
            death = error

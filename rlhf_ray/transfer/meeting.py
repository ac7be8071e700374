"""Where sender and engines of a transfer group meet, and learn at once when the others wait in vain."""

import socket
from datetime import timedelta

from torch.distributed import PrefixStore, TCPStore

from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.group import TransferGroup

ARRIVED, OUTCOME, ENDED = "arrived", "outcome", "ended"
ALL_HERE = "all are here"

CALL_OFF_SECONDS = 10.0
"""To reach a sender's store: it answers at once, or it is gone, which ends the waiting too."""


def open_store(host: str, seconds: float) -> TCPStore:
    """Start the store of a new group on a free port of this machine; `store.port` tells which."""
    # Left to itself the store listens on all of the machine's addresses.
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    return TCPStore(
        host,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=seconds),
        master_listen_fd=listener.detach(),
    )


def join_store(group: TransferGroup, seconds: float | None = None) -> TCPStore:
    """Connect to the sender's store.

    Args:
        group: the group.
        seconds: deadline of connecting and of each wait; the group's own unless given.

    Raises:
        TransferError: nothing answers there in time.
    """
    limit = group.seconds if seconds is None else seconds
    try:
        return TCPStore(group.host, group.port, is_master=False, timeout=timedelta(seconds=limit))
    except RuntimeError as error:
        raise TransferError(
            f"weight transfer: no sender at {group.host}:{group.port} within {limit:g} s "
            f"(generation {group.generation}): {error}"
        ) from error


def meet(group: TransferGroup, store: TCPStore) -> None:
    """Wait until the sender and all engines have come; each calls it once, before its workers begin to join.

    A process that joins a gloo or NCCL group cannot be called back from it, so nobody begins where one is missing.

    Raises:
        TransferError: the meeting was called off, or not everybody came within the group's deadline.
    """
    members = _of(group, store)
    expected = 1 + len(group.engine_workers)
    try:
        if members.add(ARRIVED, 1) == expected:
            members.set(OUTCOME, ALL_HERE)
        outcome = members.get(OUTCOME).decode()
    except RuntimeError as error:
        raise TransferError(
            f"weight transfer: of the sender and {expected - 1} engines of generation {group.generation} not all came "
            f"within {group.seconds:g} s: {error}"
        ) from error
    if outcome != ALL_HERE:
        raise TransferError(f"weight transfer: generation {group.generation} does not come about: {outcome}")


def call_off(group: TransferGroup, reason: str) -> None:
    """End the waiting of those who have come, where one will not; nothing happens where all are here.

    Raises:
        TransferError: the sender's store is gone, and with it the waiting.
    """
    members = _of(group, join_store(group, CALL_OFF_SECONDS))
    if not members.check([OUTCOME]):
        members.set(OUTCOME, reason)


def end_transfer(group: TransferGroup, reason: str) -> None:
    """Tell those who wait within a transfer, where it goes through the store, that it broke off.

    Raises:
        TransferError: the sender's store is gone, and with it the waiting.
    """
    _of(group, join_store(group, CALL_OFF_SECONDS)).set(ENDED, reason)


def why_ended(group: TransferGroup, store: TCPStore) -> str | None:
    """Return why the group's transfers broke off; None where they did not."""
    members = _of(group, store)
    return members.get(ENDED).decode() if members.check([ENDED]) else None


def _of(group: TransferGroup, store: TCPStore) -> PrefixStore:
    return PrefixStore(f"meeting/{group.generation}", store)

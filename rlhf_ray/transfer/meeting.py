"""Where sender and engines of a transfer group meet, and learn at once when the others wait in vain."""

import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore

from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.group import TransferGroup

ARRIVED, OUTCOME, ENDED = "arrived", "outcome", "ended"
ALL_HERE = "all are here"

LOOK_SECONDS = 1.0
"""Between two looks at whether a transfer, for which somebody waits, was broken off."""

SHORTEST_PAUSE, LONGEST_PAUSE = 0.0005, 0.01
"""Seconds between two questions to a store. A bucket takes some ten milliseconds, and many ranks ask one store."""

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


def announce(group: TransferGroup, store: TCPStore, transfer: int) -> None:
    """Tell the engines that the first bucket of a transfer sets out; transfers of a group are numbered from 0."""
    _of(group, store).set(f"transfer {transfer}", "sets out")


def wait_for_transfer(group: TransferGroup, store: TCPStore, transfer: int) -> None:
    """Wait until the sender has gathered the first bucket of a transfer.

    Raises:
        TransferError: that took longer than the group's deadline, or the transfer was broken off.
    """
    wait_for_keys(_of(group, store), [f"transfer {transfer}"], group.seconds, lambda: why_ended(group, store))


def wait_for_keys(store: Store, names: list[str], seconds: float, why_ended: Callable[[], str | None]) -> None:
    """Wait until a store has all these keys, looking now and then whether that is in vain.

    Raises:
        TransferError: it is, or they did not come in time, or the store is gone.
    """
    deadline = time.monotonic() + seconds
    pause, next_look = SHORTEST_PAUSE, 0.0
    try:
        # Not by the store's own waiting, which cannot hear of an end, and logs each time that it waited in vain.
        while not store.check(names):
            now = time.monotonic()
            if now >= next_look:
                next_look = now + LOOK_SECONDS
                if (reason := why_ended()) is not None:
                    raise TransferError(f"weight transfer: broken off: {reason}")
            if now > deadline:
                listed = ", ".join(map(repr, names))
                raise TransferError(f"weight transfer: no {listed} within {seconds:g} s")
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, 1.5 * pause)
    except RuntimeError as error:
        raise TransferError(f"weight transfer: the store of those who wait for each other is gone: {error}") from error


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

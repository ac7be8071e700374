"""A rendezvous that does not come about ends for all who came, long before its deadline."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import TCPStore

from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.group import TransferGroup
from rlhf_ray.transfer.meeting import call_off, join_store, meet, open_store

LONG = 120.0


def opened(engines: int) -> tuple[TCPStore, TransferGroup]:
    store = open_store("127.0.0.1", LONG)
    return store, TransferGroup("gloo", 4, "127.0.0.1", store.port, (1,) * engines, LONG, "", 0, b"")


def test_who_came_hears_at_once_why_another_does_not_come() -> None:
    store, group = opened(engines=2)
    with ThreadPoolExecutor(2) as threads:
        came = [threads.submit(meet, group, store), threads.submit(meet, group, join_store(group))]
        call_off(group, "rollout rank 1: out of memory")
        for waiting in came:
            with pytest.raises(TransferError, match="generation 4 does not come about: rollout rank 1: out of memory"):
                waiting.result(60)


def test_who_comes_later_hears_it_too() -> None:
    store, group = opened(engines=1)
    call_off(group, "rollout rank 0 died")
    with pytest.raises(TransferError, match="rollout rank 0 died"):
        meet(group, store)


def test_where_all_have_come_nothing_is_called_off() -> None:
    store, group = opened(engines=1)
    with ThreadPoolExecutor(1) as threads:
        sender = threads.submit(meet, group, store)
        meet(group, join_store(group))
        sender.result(60)
    call_off(group, "too late")
    assert store.get("meeting/4/outcome") == b"all are here"


def test_a_sender_that_goes_away_ends_the_waiting() -> None:
    store, group = opened(engines=2)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(meet, group, join_store(group))
        del store
        with pytest.raises(TransferError, match="not all came"):
            waiting.result(60)

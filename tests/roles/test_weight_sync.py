"""What the driver does when a transfer group does not come about."""

from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleRaised
from rlhf_ray.roles import policy_sync
from rlhf_ray.roles.policy_sync import WeightSync
from rlhf_ray.transfer import sender as sender_module
from rlhf_ray.transfer.group import TransferGroup, Transport
from rlhf_ray.transfer.meeting import join_store, meet
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource
from tests.transfer.test_ipc import Buffer

LONG = 120.0
"""Deadline of the rendezvous, which no test waits for."""

THREADS = ThreadPoolExecutor(8)


class Policy:
    """A policy of one rank, whose calls run one after another, as those of its actor do."""

    name = "policy"
    transport: Transport = "gloo"

    def __init__(self) -> None:
        source = DeepSpeedWeightSource(nn.Linear(2, 2), "float32", 64)
        self._sender = WeightSender(source, self.transport, rank=0, seconds=LONG)
        self._own = ThreadPoolExecutor(1)
        self.slots = [SimpleNamespace()]
        self.cluster = SimpleNamespace(node=lambda _: "node")
        self.killed = False

    def call_one(self, rank: int, method: str, *arguments: Any, seconds: float) -> Any:
        assert method == "open_transfer"
        return self._own.submit(self._sender.open, *arguments).result(60)

    def submit_one(self, rank: int, method: str) -> "Future[None]":
        assert method == "join_transfer"
        self.joining = self._own.submit(self._sender.join)
        return self.joining

    def call(self, method: str, *_: Any, phase: str = "", seconds: float = 60) -> Any:
        return {"prepare_transfer": [self._sender.manifest], "close_transfer": []}[method]

    def kill(self) -> None:
        self.killed = True


class Engines:
    """Two engines: one comes to the rendezvous, the other fails on its way."""

    name = "rollout"
    transfer_seconds = LONG

    def __init__(self, cluster: Any) -> None:
        cluster.host = lambda *_: "127.0.0.1"
        self.cluster = cluster
        self.calls: list[Future[None]] = []

    def submit_one(self, engine: int, method: str, group: TransferGroup, position: int) -> "Future[None]":
        def connect() -> None:
            if engine == 1:
                raise RoleRaised("no such interface (rollout rank 1, rendezvous)", "rollout", 1, "rendezvous")
            meet(group, join_store(group))

        self.calls.append(THREADS.submit(connect))
        return self.calls[-1]


def first_failure(calls: Sequence[tuple["Future[Any]", Any]], *, phase: str, seconds: float) -> list[Any]:
    """`wait_together` for calls that are threads."""
    return results_of([ref for ref, _ in calls])


def results_of(calls: Sequence["Future[Any]"], **_: Any) -> list[Any]:
    done, _ = wait_for(calls, timeout=60, return_when=FIRST_EXCEPTION)
    for call in done:
        call.result()
    return [call.result(0) for call in calls]


def ended(calls: Sequence["Future[Any]"], *, num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
    """`ray.wait` for calls that are threads."""
    done, waiting = wait_for(calls, timeout=timeout)
    return list(done), list(waiting)


def test_an_engine_that_fails_ends_the_rendezvous_for_all_with_its_own_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the deadline: neither the policy, which would be lost, nor the engine that came."""
    monkeypatch.setattr(policy_sync, "wait_together", first_failure)
    monkeypatch.setattr(policy_sync.ray, "wait", ended)
    monkeypatch.setattr(policy_sync.ray, "put", lambda value: value)
    monkeypatch.setattr(policy_sync, "wait", lambda calls, **_: wait_for(calls, timeout=60))
    monkeypatch.setattr(policy_sync, "run_on", lambda node, function, *arguments: THREADS.submit(function, *arguments))
    actors: Any = Policy()
    engines: Any = Engines(actors.cluster)
    policy: Any = SimpleNamespace(name="policy", actors=actors)
    sync = WeightSync(
        policy,
        engines,
        engine_workers=[1, 1],
        transport="gloo",
        bucket_bytes=64,
        dtype="float32",
        tolerance=None,
        probes=list,
    )
    with pytest.raises(RoleRaised, match="no such interface"):
        sync(0, [0, 1])
    for call in (actors.joining, engines.calls[0]):
        assert "does not come about: no such interface" in str(call.exception(timeout=0))
    assert not actors.killed
    assert sync.stuck == []


class SharingPolicy(Policy):
    """A policy on its engine's GPU, which offers its buffer and waits until the engine has copied it."""

    transport = "ipc"

    def submit(self, method: str) -> "list[Future[Any]]":
        assert method == "send_weights"
        return [self._own.submit(self._sender.send)]

    def call(self, method: str, *arguments: Any, phase: str = "", seconds: float = 60) -> Any:
        if method != "close_transfer":
            return super().call(method, *arguments)
        try:
            return [self._own.submit(self._sender.close).result(seconds)]
        except TimeoutError as error:
            raise DeadlineExceeded("policy rank 0 still waits", "policy", 0, phase) from error


class DyingEngines:
    """One engine, which comes to the rendezvous and dies in the transfer."""

    name = "rollout"
    transfer_seconds = LONG

    def __init__(self, cluster: Any) -> None:
        cluster.host = lambda *_: "127.0.0.1"
        self.cluster = cluster

    def submit_one(self, engine: int, method: str, *arguments: Any) -> "Future[None]":
        def act() -> None:
            if method == "receive":
                raise RoleDied("rollout rank 0 died", "rollout", 0, "transfer")
            meet(arguments[0], join_store(arguments[0]))

        return THREADS.submit(act)


def test_an_engine_that_dies_in_a_colocated_sync_does_not_cost_the_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a collective nor a deadline keeps the policy from the next transfer."""
    patches = {
        "wait_together": first_failure,
        "wait": lambda calls, **_: wait_for(calls, timeout=60),
        "run_on": lambda node, function, *arguments: THREADS.submit(function, *arguments),
        "BREAK_OFF_SECONDS": 20.0,
    }
    for name, patch in patches.items():
        monkeypatch.setattr(policy_sync, name, patch)
    monkeypatch.setattr(policy_sync.ray, "wait", ended)
    monkeypatch.setattr(policy_sync.ray, "put", lambda value: value)
    monkeypatch.setattr(sender_module, "IpcExport", Buffer)
    actors: Any = SharingPolicy()
    engines: Any = DyingEngines(actors.cluster)
    policy: Any = SimpleNamespace(name="policy", actors=actors)
    settings: Any = {"bucket_bytes": 64, "dtype": "float32", "tolerance": None, "probes": list}
    sync = WeightSync(policy, engines, engine_workers=[1], transport="ipc", **settings)
    with pytest.raises(RoleDied, match="rollout rank 0 died"):
        sync(0, [0])
    assert not actors.killed
    assert sync.stuck == []

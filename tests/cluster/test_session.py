"""Starting and joining Ray, in processes of their own: nothing may stay behind, and nothing may wait for ever."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from rlhf_ray.cluster import session
from rlhf_ray.cluster.errors import ClusterUnreachable, DoesNotFit
from rlhf_ray.cluster.session import join_ray, start_local
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.placement import ClusterConfig, GroupConfig

LOCAL = """
import os, sys, psutil, ray
from rlhf_ray.cluster.connect import connect
from rlhf_ray.config.placement import ClusterConfig, GroupConfig
with connect(ClusterConfig(), {"main": GroupConfig(cpus_per_node=1.5), "other": GroupConfig(cpus_per_node=5)}):
    print("CPUs", ray.cluster_resources()["CPU"])
    children = psutil.Process().children(recursive=True)
    assert children
_, alive = psutil.wait_procs(children, timeout=15)
print("left", [process.name() for process in alive])
"""


@pytest.fixture
def listener() -> Iterator[int]:
    """A port at which something listens that is not Ray."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        yield server.getsockname()[1]


def test_a_local_ray_has_what_the_groups_ask_and_leaves_nothing():
    done = subprocess.run([sys.executable, "-c", LOCAL], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["CPUs 7.0", "left []"]
    assert done.stderr == "", "Ray must be quiet"


def test_nobody_listens_at_the_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(ClusterUnreachable, match=rf"cluster.address 127.0.0.1:{port}: no Ray answers there .*refused"):
        join_ray(f"127.0.0.1:{port}")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("address", ["10.0.0.1", "head", "ray://head", "head:port", "http://head:8265", "[::1:6379"])
def test_what_is_no_address(address: str):
    with pytest.raises(BadInput, match=r"cluster.address \(or the variable RAY_ADDRESS\): must be host:port"):
        join_ray(address)


@pytest.mark.parametrize("address", [None, "", "auto", "10.0.0.1:6379", "[::1]:6379", "ray://head:10001"])
def test_what_is_an_address(address: str | None):
    assert ClusterConfig(address=address).address == address


def test_what_listens_is_not_ray(listener: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session, "HEALTH_SECONDS", 6.0)
    started = time.monotonic()
    with pytest.raises(ClusterUnreachable, match="did not answer as Ray within 6 s"):
        join_ray(f"127.0.0.1:{listener}")
    assert time.monotonic() - started < 20


def test_a_local_ray_has_one_node():
    with pytest.raises(DoesNotFit, match=r"groups.main.nodes: 2 nodes, but without a cluster"):
        start_local({"main": GroupConfig(nodes=2)}, 1)


def test_a_local_ray_cannot_have_more_gpus_than_the_machine():
    with pytest.raises(DoesNotFit, match=r"groups: 513 GPUs asked, this machine shows \d+"):
        start_local({"main": GroupConfig(gpus_per_node=512), "other": GroupConfig(gpus_per_node=0.5)}, 1)


class BusyMachine:
    """Stands in for `ray.init`: its first tries leave a process behind that waits for others, and then time out."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.left: list[subprocess.Popen[bytes]] = []

    def __call__(self, **_: Any) -> None:
        if len(self.left) == self.failures:
            return
        self.left.append(subprocess.Popen(["sleep", "600"]))
        raise Exception("The current node timed out during startup.")


def test_a_ray_that_does_not_start_is_started_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine = BusyMachine(failures=2)
    monkeypatch.setattr("ray.init", machine)
    monkeypatch.setattr(session, "RETRY_SECONDS", 0.01)
    start_local({"main": GroupConfig()}, seconds=60)
    assert [psutil.pid_exists(process.pid) for process in machine.left] == [False] * 2, (
        "two Rays are more work than one"
    )
    assert caplog.text.count("Ray did not start, and is started again: The current node timed out") == 2


def test_a_ray_that_never_starts_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = BusyMachine(failures=99)
    monkeypatch.setattr("ray.init", machine)
    slept: list[float] = []
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: sum(slept), sleep=slept.append))
    message = r"Ray did not start on this machine within 12 s.*start_seconds.* it said: .*timed out during startup"
    with pytest.raises(ClusterUnreachable, match=message):
        start_local({"main": GroupConfig()}, seconds=12)
    assert slept == [session.RETRY_SECONDS] * 2
    assert len(machine.left) == 3
    assert not any(psutil.pid_exists(process.pid) for process in machine.left)


def test_processes_that_other_threads_start_while_ray_does_are_left_alone() -> None:
    """As wandb's, which begins a session of its own: no process of one may be put into a group."""
    command = [sys.executable, "-c", "import os; print(os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid())"]

    def began(**options: Any) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout.strip()

    with session._groups_of_their_own(), ThreadPoolExecutor(1) as thread:
        assert began() == "True False", "Ray's own"
        assert began(start_new_session=True) == "True True"
        assert thread.submit(began, start_new_session=True).result() == "True True"
        assert thread.submit(began).result() == "False False"

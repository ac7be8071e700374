"""The Ray session: the one that is there, the one that the job was submitted to, or a local one of our own."""

import logging
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import psutil
import ray
from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

from rlhf_ray.cluster.errors import ClusterUnreachable, DoesNotFit
from rlhf_ray.cluster.head_watch import head_watched
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.placement import ADDRESS_FORMS, ClusterConfig, GroupConfig, host_and_port

# A node that is there accepts a connection within this time, also across continents.
CONNECT_SECONDS = 5.0

# Importing Ray takes seconds on a busy machine; its answer takes none.
HEALTH_SECONDS = 30.0

RETRY_SECONDS = 5.0
"""Between two tries to start Ray, in which the machine may become less busy."""

END_SECONDS = 10.0
"""In which processes that were told to end do so."""

logger = logging.getLogger(__name__)

Say = Callable[[str], object]
"""Takes a line for the person who watches."""


def silent(text: str) -> None:
    """Say nothing."""


@contextmanager
def ray_session(cluster: ClusterConfig, groups: Mapping[str, GroupConfig], say: Say = silent) -> Iterator[bool]:
    """Join or start Ray, and say when it is ready; a session that was open before stays open.

    Yields:
        Whether a cluster was joined that others started.

    Raises:
        BadInput: RAY_ADDRESS is no address.
        ClusterUnreachable: no Ray answers at the address, or none starts here.
        DoesNotFit: a local Ray cannot hold the groups.
    """
    if ray.is_initialized():
        yield False
        return
    began = time.monotonic()
    # The variable by which Ray itself tells a submitted job where it runs.
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    with _own_sigterm():
        if address:
            join_ray(address)
        else:
            start_local(groups, cluster.deadlines.start_seconds)
    say(f"Ray is ready ({time.monotonic() - began:.0f} s)")
    try:
        # A client of Ray (ray://) reaches the head through a server of its own, and does not know its address.
        with nullcontext() if (address or "").startswith("ray://") else head_watched(joined=bool(address)):
            yield bool(address)
    finally:
        ray.shutdown()


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the program's own answer to SIGTERM, if it has one, where `ray.init` sets another.

    Ray's ends the process from within whatever of Ray's C++ code waits, which then prints a trace of itself.
    """
    own = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(own) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, own)


def join_ray(address: str) -> None:
    """Connect to a running cluster.

    Raises:
        BadInput: it is no address; `cluster.address` was checked before, RAY_ADDRESS was not.
        ClusterUnreachable: no Ray answers there.
    """
    place = host_and_port(address)
    if address != "auto" and place is None:
        raise BadInput(f"cluster.address (or the variable RAY_ADDRESS): {ADDRESS_FORMS}, not {address!r}")
    send_token()
    if place is not None:
        _check_port(address, place)
        if not address.startswith("ray://"):
            _check_health(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ClusterUnreachable(
            f"cluster.address {address}: Ray did not let us in: {error}; check that it is the address that "
            "`ray start --head` printed, and that both sides run the same Ray"
        ) from error


def _check_port(address: str, place: tuple[str, int]) -> None:
    """Fail fast where nothing listens: Ray itself tries for minutes."""
    try:
        socket.create_connection(place, CONNECT_SECONDS).close()
    except OSError as error:
        raise ClusterUnreachable(
            f"cluster.address {address}: no Ray answers there ({error}); start one with `ray start --head`, "
            "or leave cluster.address out to run on this machine alone"
        ) from error


def _check_health(address: str) -> None:
    """Ask in a process of its own, which can be ended: against something that is not Ray, its client tries for ever."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterUnreachable(
            f"cluster.address {address}: what listens there did not answer as Ray within {HEALTH_SECONDS:g} s; "
            "give the address that `ray start --head` printed (port 6379, not the dashboard's)"
        ) from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no reason given"]
        raise ClusterUnreachable(f"cluster.address {address}: Ray refused: {lines[-1]}")


def send_token() -> None:
    """Send the user's token, where there is one: clusters then ask for it, but Ray's clients do not by themselves."""
    quieten_ray()
    maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def quieten_ray() -> None:
    """Hide Ray's notice that token authentication is on, which it is by default."""
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)


def start_local(groups: Mapping[str, GroupConfig], seconds: float) -> None:
    """Start a Ray of this machine alone, with exactly the resources that the groups ask for.

    CPUs are logical: a machine with two cores may hold groups that ask for more.

    Args:
        groups: what the job asks for.
        seconds: after which no further try begins.

    Raises:
        DoesNotFit: a group asks for several nodes, or the machine has fewer GPUs.
        ClusterUnreachable: Ray's processes did not come up at any try.
    """
    for name, group in groups.items():
        if group.nodes > 1:
            raise DoesNotFit(
                f"groups.{name}.nodes: {group.nodes} nodes, but without a cluster there is only this one; "
                "set cluster.address, or submit the job to a cluster (`rlhf submit`)"
            )
    gpus = math.ceil(sum(group.gpus_per_node for group in groups.values()) - 1e-6)
    if gpus:
        _check_gpus(gpus)
    quieten_ray()
    # Ray asks the user about statistics at its first start; a library has no business to send any.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Workers see the devices that the placement chose; Ray's notice about this variable is not for our users.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    cpus = math.ceil(sum(group.cpus_per_node for group in groups.values()))
    start_patiently(lambda: _init_local(cpus, gpus), seconds)


def start_patiently(init: Callable[[], object], seconds: float) -> None:
    """Start Ray's processes, and where they do not come up in the time that Ray gives them, end and start them again.

    Args:
        init: a call of `ray.init`.
        seconds: after which no further try begins.

    Raises:
        ClusterUnreachable: they came up at no try.
    """
    deadline = time.monotonic() + seconds
    while True:
        before = _children()
        try:
            init()
            return
        except Exception as error:
            # Of no narrower class: Ray raises a plain Exception where its processes take longer than it waits for them.
            _end(_children() - before)
            if time.monotonic() + RETRY_SECONDS > deadline or isinstance(error, (TypeError, ValueError)):
                raise ClusterUnreachable(
                    f"Ray did not start on this machine within {seconds:g} s; where other work keeps all cores busy, "
                    "wait for it and give the same command again, or raise cluster.deadlines.start_seconds. "
                    f"Ray's own logs are in /tmp/ray/session_latest/logs, and it said: {error}"
                ) from error
            logger.warning("Ray did not start, and is started again: %s", error)
        time.sleep(RETRY_SECONDS)


def _init_local(cpus: int, gpus: int) -> None:
    with _groups_of_their_own():
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            # Ray's workers are made to yield to whatever else runs on the machine, which slows a run by an order of
            # magnitude beside another busy process: its ranks wait for each other all the time.
            _system_config={"worker_niceness": 0},
        )


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Start Ray's processes outside of this one's process group; the kernel ends them with this one all the same.

    A scheduler, or `timeout`, stops a job by a SIGTERM to its whole group. Ray's processes would end by it at once, and
    the roles with them, while this one was asked to let them save. What other threads start meanwhile is theirs.
    """
    begin, here = subprocess.Popen.__init__, threading.get_ident()

    def begin_apart(process: "subprocess.Popen[Any]", *arguments: Any, **options: Any) -> None:
        # Who begins a session has a group of its own, and may not ask for another one.
        if threading.get_ident() == here and not options.get("start_new_session"):
            options.setdefault("process_group", 0)
        begin(process, *arguments, **options)

    subprocess.Popen.__init__ = begin_apart  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = begin  # type: ignore[method-assign]


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _end(left: set[psutil.Process]) -> None:
    """End what a start left behind that failed: Ray itself forgets those processes until this one ends."""
    ray.shutdown()
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)


def _check_gpus(asked: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < asked:
        raise DoesNotFit(
            f"groups: {asked} GPUs asked, this machine shows {found}; lower gpus_per_node (and gpus_per_worker of the "
            "roles), or set cluster.address"
        )

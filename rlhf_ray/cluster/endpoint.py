"""Addresses at which process groups meet."""

import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

LOOPBACK = "127.0.0.1"


FIRST_PORT = 20_000
"""Above those that Ray gives to its workers."""

PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
"""Ports that the system gives away by itself, on Linux."""

TRIES = 200


def free_port(host: str = LOOPBACK) -> int:
    """Find a TCP port that is free on this machine, and stays so until somebody asks for it by number.

    The system would name one that it may give to the next connection of any process, before its group listens there.
    """
    try:
        first_given, last_given = map(int, PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        first_given, last_given = 32_768, 60_999
    kept = [*range(FIRST_PORT, first_given), *range(max(last_given + 1, FIRST_PORT), 65_536)]
    random = Random()  # not the seeded one: jobs of equal seeds would ask for equal ports
    for port in random.sample(kept, min(TRIES, len(kept))):
        with socket.socket() as listener, suppress(OSError):
            listener.bind((host, port))
            return port
    with socket.socket() as listener:
        listener.bind((host, 0))
        return int(listener.getsockname()[1])


def free_port_on(node_id: str) -> ray.ObjectRef:
    """Find a free port on another node; return a reference to it."""
    return run_on(node_id, free_port, "")


def run_on(node_id: str, function: Callable[..., Any], *arguments: Any, gpus: int = 0) -> ray.ObjectRef:
    """Call a short function on a node, with some GPUs; a reference to what it returns."""
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task: Any = ray.remote(function)
    ref: ray.ObjectRef = task.options(num_cpus=0, num_gpus=gpus, max_retries=0, scheduling_strategy=strategy).remote(
        *arguments
    )
    return ref

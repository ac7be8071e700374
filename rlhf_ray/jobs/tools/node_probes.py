"""What `rlhf doctor` lets each node of a cluster do: each function runs there, in a process of Ray."""

import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rlhf_ray.tracking.run_record import PACKAGES

CONNECT_SECONDS = 5.0
MEET_SECONDS = 60
"""For all nodes to come to the all-reduce."""

REDUCED_BYTES = 64 * 2**20
"""As much as a bucket of weights; the first round, which makes the connections, is not timed."""

ROUNDS = 3

PEERS = """
import torch
count = torch.cuda.device_count()
pairs = [(a, b) for a in range(count) for b in range(count) if a != b and not torch.cuda.can_device_access_peer(a, b)]
print(count, *(f"{a}-{b}" for a, b in pairs))
"""


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that sides of a run must have alike, by name."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            # A build for CPU or CUDA is told by the package's name, or does not matter here.
            found[package] = version(package).split("+")[0]
        except PackageNotFoundError:
            continue
    return found


def clock() -> float:
    """Return the node's time, in Unix seconds."""
    return time.time()


def shared_memory() -> float:
    """Return the free bytes of /dev/shm; 0 where there is none."""
    place = Path("/dev/shm")
    return shutil.disk_usage(place).free if place.is_dir() else 0


def write_mark(folder: str, name: str) -> str:
    """Write a file into a folder, which is made where it is not there; return why that failed, or nothing."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / name).write_text(name)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def remove_mark(folder: str, name: str) -> None:
    """Remove a file that `write_mark` wrote."""
    (Path(folder) / name).unlink(missing_ok=True)


def read_marks(folder: str, names: list[str]) -> list[str]:
    """Return those of the names that no file of the folder has, whole."""
    # A network file system shows what others wrote once a folder is looked at anew.
    if Path(folder).is_dir():
        os.listdir(folder)
    return [name for name in names if not _holds(Path(folder) / name)]


def _holds(file: Path) -> bool:
    try:
        return file.read_text() == file.name
    except OSError:
        return False


def listen(port: int, seconds: float) -> None:
    """Take connections at a port, for that long."""
    with socket.create_server(("", port)) as server:
        server.settimeout(0.2)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                server.accept()[0].close()
            except TimeoutError:
                continue


def unreachable(places: list[tuple[str, int]]) -> list[str]:
    """Return those of the addresses, host and port, that take no connection from here, and why."""
    found = []
    for place in places:
        deadline = time.monotonic() + CONNECT_SECONDS
        while True:
            try:
                socket.create_connection(place, CONNECT_SECONDS).close()
                break
            except OSError as error:
                if time.monotonic() > deadline:  # who is to listen there may not have begun
                    found.append(f"{place[0]}:{place[1]} ({error})")
                    break
                time.sleep(0.2)
    return found


def all_reduce(host: str, port: int, rank: int, world: int, backend: str) -> float:
    """Sum an array over all nodes; return the bytes a second that a node sent and got on the way (the bus bandwidth).

    Args: host and port, where rank 0 listens; rank and world, of the nodes; backend, gloo or nccl.

    Raises:
        RuntimeError: they did not meet, or the sum is wrong.
    """
    import torch
    import torch.distributed as dist

    device = "cuda" if backend == "nccl" else "cpu"
    limit = timedelta(seconds=MEET_SECONDS)
    dist.init_process_group(backend, f"tcp://{host}:{port}", rank=rank, world_size=world, timeout=limit)
    try:
        array = torch.ones(REDUCED_BYTES // 4, device=device)
        dist.all_reduce(array)
        if array[0].item() != world:
            raise RuntimeError(f"the sum over {world} nodes is {array[0].item():g}")
        began = time.perf_counter()
        for _ in range(ROUNDS):
            dist.all_reduce(array)
        array[0].item()  # once it is done
        seconds = (time.perf_counter() - began) / ROUNDS
    finally:
        dist.destroy_process_group()
    return 2 * (world - 1) / world * REDUCED_BYTES / seconds


def peers() -> tuple[int, list[str]]:
    """Return how many GPUs the node has, and the pairs of them that cannot read each other's memory."""
    # In a process that sees all GPUs: Ray hides them from one that asked for none.
    kept = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    command = [sys.executable, "-c", PEERS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=MEET_SECONDS, check=False, env=kept)
    count, *pairs = done.stdout.split() or ["0"]
    return int(count), pairs

"""The cluster's head, watched from the driver: where it is gone the run ends at once, with a line that says what to do.

Left to itself Ray waits for its head for a minute, in calls that nothing interrupts, and then aborts the process with a
trace of its own.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray

from rlhf_ray.config.errors import RlhfError

LOOK_SECONDS = 2.0
"""Between two looks."""

ANSWER_SECONDS = 5.0
"""In which a head that is there takes a connection, however busy its machine is."""

GONE_SECONDS = 20.0
"""For which nobody took a connection when the head counts as gone: a network may fail for a moment."""

START_CLUSTER = "start the cluster again (`ray start --head`, and `ray start --address` on its nodes)"


@contextmanager
def head_watched(*, joined: bool) -> Iterator[None]:
    """End this process while the block runs, should Ray's head be gone.

    Nothing is lost by it that the head's death had not taken already: without a head no role can be asked to save.

    Args:
        joined: whether it is the head of a cluster that others started, and not of a Ray of our own.
    """
    host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
    left = threading.Event()
    place = (host.strip("[]"), int(port))
    advice = START_CLUSTER if joined else "the system's log may say why"

    def gone(error: OSError) -> None:
        end_process(
            f"Ray's head at {place[0]}:{place[1]} is gone ({error}), and the roles with it; {advice}; then give the "
            "same command: it goes on from the newest checkpoint"
        )

    watch = threading.Thread(target=watch_head, args=(place, left, gone), name="head watch", daemon=True)
    watch.start()
    try:
        yield
    except Exception:
        # A role that is lost may have been lost with the head.
        if (error := no_answer(place)) is not None:
            gone(error)
        raise
    finally:
        left.set()


def watch_head(place: tuple[str, int], left: threading.Event, gone: Callable[[OSError], object]) -> None:
    """Look at the head until `left` is set; call `gone` with the last error once nobody has answered for too long.

    Args:
        place: host and port of Ray's head.
        left: set when nobody needs the head any longer.
        gone: told once.
    """
    while not left.wait(LOOK_SECONDS):
        if (error := no_answer(place)) is not None and not left.is_set():
            gone(error)
            return


def no_answer(place: tuple[str, int]) -> OSError | None:
    """Connect to a place, for GONE_SECONDS where nobody answers; return the last error, nothing once somebody does."""
    deadline = time.monotonic() + GONE_SECONDS
    while True:
        try:
            socket.create_connection(place, ANSWER_SECONDS).close()
            return None
        except OSError as error:
            if time.monotonic() > deadline:
                return error
        time.sleep(LOOK_SECONDS)


def end_process(line: str) -> None:
    """Print a line and end this process at once, whatever its threads wait for."""
    print(f"rlhf: {line}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(RlhfError.exit_code)

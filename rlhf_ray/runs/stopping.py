"""Leaving on request: the first SIGTERM or Ctrl-C asks a job to save and leave, the second one ends it at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Set by a signal; jobs look at it between steps."""

    def __init__(self) -> None:
        self._asked = threading.Event()

    def __bool__(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask the job to save and leave."""
        self._asked.set()


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM be Ctrl-C while the block runs: what was begun is put away, and a run folder without a step goes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Turn the first SIGTERM or SIGINT into a StopRequest while the block runs."""
    stop = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may set handlers; a job inside another program is stopped by its host.
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.ask()
        print(f"{signal.Signals(number).name}: saving after this step; once more to leave at once", flush=True)
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

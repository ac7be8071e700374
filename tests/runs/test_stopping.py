"""The first signal asks a job to save and leave, the second one ends it at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from rlhf_ray.runs.stopping import StopRequest, stop_on_signals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)}
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert f"{number.name}: saving after this step; once more to leave at once" in capsys.readouterr().out
        assert signal.getsignal(number) == before[number], "the second one does what it would do without us"
    assert {one: signal.getsignal(one) for one in before} == before


SECOND_SIGNAL = """
import os, signal
from rlhf_ray.runs.stopping import stop_on_signals
with stop_on_signals() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("asked", bool(stop), flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("still here")
"""


def test_the_second_signal_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", SECOND_SIGNAL], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGTERM
    assert "asked True" in done.stdout
    assert "still here" not in done.stdout


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ValueError, match="of the job"), stop_on_signals():
        raise ValueError("of the job")
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_nothing_is_touched() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[tuple[StopRequest, object]] = []

    def job() -> None:
        with stop_on_signals() as stop:
            found.append((stop, signal.getsignal(signal.SIGTERM)))
            stop.ask()

    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    [(stop, handler)] = found
    assert handler == before
    assert stop

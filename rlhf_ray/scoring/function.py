"""A Python function as reward source, in a process that can be given up."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rlhf_ray.config.checks.functions import check_function
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.data.columns import as_given
from rlhf_ray.data.records import Prompt
from rlhf_ray.scoring.source import Failure, FailureKind, Scores

START_SECONDS = 300.0
"""For the function's file to be imported, which may load models."""
END_SECONDS = 5.0
"""For a killed process to be gone."""
ALIVE_SECONDS = 1.0
"""Between looks at whether the process lives."""


class FunctionScorer:
    """Calls `name(prompts, completions, **columns) -> list[float | None]` of a file (TRL's convention).

    None means that the source does not apply to the sample. To prompts of messages, completions are messages too. A
    function that does not take every column gets those that it names. A process that hangs or dies is replaced; what a
    dead one did not answer is asked again, once.
    """

    def __init__(self, source: FunctionReward) -> None:
        """Start the process and import the file.

        Raises:
            BadInput: no such file or function, or the file cannot be imported.
        """
        self._file, _, self._name = source.function.rpartition(":")
        self._file = str(Path(self._file).expanduser())
        self._seconds = source.timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._asked = 0
        if not Path(self._file).is_file():
            raise BadInput(f"{source.function}: no such file: {self._file or source.function}")
        self._connection = self._start()

    @classmethod
    def open(cls, source: FunctionReward, tokens_per_microbatch: int) -> "FunctionScorer":
        """Start the process."""
        return cls(source)

    @staticmethod
    def refuse(key: str, source: FunctionReward) -> None:
        """See `check_function`."""
        try:
            check_function(source.function)
        except BadInput as error:
            raise BadInput(f"{key}.function: {error}") from error

    @staticmethod
    def identity(source: FunctionReward) -> list[Any]:
        """Return the file's content."""
        return [Path(source.function.rpartition(":")[0]).expanduser().read_text(encoding="utf-8")]

    def score(
        self, prompts: Sequence[Prompt], completions: Sequence[str], columns: Mapping[str, Sequence[Any]]
    ) -> Scores:
        """Score completions within the limit of a batch; whatever goes wrong is a failure of the whole batch."""
        rows = len(completions)
        if rows == 0:
            return Scores([])
        given = [as_given(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
        beside = {name: list(values) for name, values in columns.items() if name not in ("prompts", "completions")}
        try:
            kind, answer = self._ask(list(prompts), given, beside)
        except TimeoutError:
            self._end()
            message = f"{self._file}:{self._name} did not return within timeout_seconds {self._seconds:g}"
            return Scores.failed("hung", message, rows)
        except (EOFError, ConnectionError) as error:
            return Scores.failed("died", f"{self._file}:{self._name}: {self._death(error)}", rows)
        except BadInput as error:
            return Scores.failed("died", f"its process did not start again: {error}", rows)
        if kind != "values":
            return Scores.failed(kind, answer, rows)
        values, broken = answer
        return Scores(values, _failures(broken))

    def wake(self) -> None:
        """Do nothing: the process stays ready."""

    def sleep(self) -> None:
        """Do nothing: the process has no device of ours."""

    def close(self) -> None:
        """End the process."""
        self._end()

    @property
    def pid(self) -> int | None:
        """Id of the process; None between its loss and the next batch."""
        return None if self._process is None else self._process.pid

    def _ask(self, *batch: Any) -> tuple[Any, Any]:
        """Return the answer to a batch; one that its process did not live to give is asked for again, once.

        Raises:
            TimeoutError: no answer within the limit.
            EOFError, ConnectionError: the second process ended too.
            BadInput: there is no second process.
        """
        try:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._connection = self._start()
            return self._exchange(batch)
        except (EOFError, ConnectionError):
            self._end()
            self._connection = self._start()
            return self._exchange(batch)

    def _exchange(self, batch: tuple[Any, ...]) -> tuple[Any, Any]:
        """Send a batch and receive its answer. A process that does not read is not waited for either."""
        self._asked += 1
        try:
            self._connection.send((self._asked, *batch))
        except BlockingIOError:
            raise TimeoutError from None
        return self._receive(self._connection, self._asked, self._seconds)

    def _receive(self, connection: Connection, number: int, seconds: float) -> tuple[Any, Any]:
        """Return the answer of this number from the process itself; what its children may send is not one."""
        process, deadline = self._process, time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            # A child that outlives the process holds the connection open, so that its end would not be seen there.
            if connection.poll(max(0.0, min(left, ALIVE_SECONDS))):
                answer, pid, kind, content = connection.recv()
                if answer == number and process is not None and pid == process.pid:
                    return kind, content
            elif process is None or process.poll() is not None:
                raise EOFError("its process is gone")
            elif left <= 0:
                raise TimeoutError

    def _start(self) -> Connection:
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "rlhf_ray.scoring.function_process", str(theirs.fileno())]
        # A session of its own, so that processes which the function starts end with it.
        self._process = subprocess.Popen(
            [*command, self._file, self._name],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        _limit_sending(ours, self._seconds)
        try:
            kind, message = self._receive(ours, 0, START_SECONDS)
        except TimeoutError:
            self._end()
            raise BadInput(f"{self._file}: its import did not end within {START_SECONDS:g} s") from None
        except (EOFError, ConnectionError) as error:
            raise BadInput(f"{self._file}: on import {self._death(error)}") from error
        if kind != "ready":
            self._end()
            raise BadInput(message)
        return ours

    def _death(self, error: Exception) -> str:
        """Say how the process ended, and clear it away."""
        process = self._process
        code: int | None = None
        if process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(END_SECONDS)
        self._end()
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with code {code}" if code is not None else f"its process broke off: {error}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)


def _failures(broken: Sequence[tuple[FailureKind, int, str]]) -> list[Failure]:
    """Return one failure of each kind, with the reason of the first sample."""
    by_kind: dict[FailureKind, list[tuple[int, str]]] = {}
    for kind, row, reason in broken:
        by_kind.setdefault(kind, []).append((row, reason))
    return [Failure(kind, found[0][1], tuple(row for row, _ in found)) for kind, found in by_kind.items()]


def _limit_sending(connection: Connection, seconds: float) -> None:
    """Let `send` raise BlockingIOError where the other side takes nothing for so long."""
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        whole = int(seconds)
        limit = struct.pack("ll", whole, int((seconds - whole) * 1e6) or 1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

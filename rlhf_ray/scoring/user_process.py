"""A process for code of the user's, from a file; whatever that does, the process can be given up."""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from rlhf_ray.config.errors import BadInput

START_SECONDS = 300.0
"""For the file to be imported, which may load models."""
END_SECONDS = 5.0
"""For a killed process to be gone."""
ALIVE_SECONDS = 1.0
"""Between looks at whether the process lives."""


class UserProcess:
    """A process that has imported a file, and answers over one connection.

    It has a session of its own, so that processes which the file's code starts end with it.
    """

    def __init__(self, module: str, file: str, name: str, sending_seconds: float) -> None:
        """Start `python -m MODULE FD FILE NAME`, and wait until it says that it has what it needs.

        Args:
            module: runs in the process; see `function_process.introduce`.
            file: the user's.
            name: what of it is used.
            sending_seconds: `send` raises BlockingIOError where the process takes nothing for so long.

        Raises:
            BadInput: the file cannot be imported, or has no such name.
        """
        self._file = file
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno()), file, name],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        _limit_sending(self.connection, sending_seconds)
        try:
            kind, message = self.receive(0, START_SECONDS)
        except TimeoutError:
            self.end()
            raise BadInput(f"{file}: its import did not end within {START_SECONDS:g} s") from None
        except (EOFError, ConnectionError) as error:
            raise BadInput(f"{file}: on import {self.death(error)}") from error
        if kind != "ready":
            self.end()
            raise BadInput(message)
        self.description: Any = message
        """What the module says of what is loaded."""

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process has not ended."""
        return self._process.poll() is None

    def receive(self, number: int, seconds: float) -> tuple[Any, Any]:
        """Return the answer of this number from the process itself; what its children may send is not one.

        Raises:
            TimeoutError: none came in time. EOFError, ConnectionError: the process is gone.
        """
        deadline = time.monotonic() + seconds
        while True:
            left = deadline - time.monotonic()
            # A child that outlives the process holds the connection open, so that its end would not be seen there.
            if self.connection.poll(max(0.0, min(left, ALIVE_SECONDS))):
                answer, pid, kind, content = self.connection.recv()
                if answer == number and pid == self.pid:
                    return kind, content
            elif not self.alive:
                raise EOFError("its process is gone")
            elif left <= 0:
                raise TimeoutError

    def death(self, error: Exception) -> str:
        """Say how the process ended, and clear it away."""
        code: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(END_SECONDS)
        self.end()
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended with code {code}" if code is not None else f"its process broke off: {error}"

    def leave(self) -> None:
        """Close the connection, at which the process ends what it has started, and end it too."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self.end()

    def end(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_SECONDS)
        self.connection.close()


def _limit_sending(connection: Connection, seconds: float) -> None:
    """Let `send` raise BlockingIOError where the other side takes nothing for so long."""
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        whole = int(seconds)
        limit = struct.pack("ll", whole, int((seconds - whole) * 1e6) or 1)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)

"""A contender in a process of its own, asked over pipes: a line to it, a line of JSON back."""

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ANSWER_SECONDS = 900.0
"""No contender's start or step takes so long."""


class PeerProcess:
    """`python -m MODULE ARGUMENTS...`; what it prints beside its answers goes to a log."""

    def __init__(self, module: str, arguments: Sequence[object], log: Path, variables: Mapping[str, str]) -> None:
        """Start it. `variables` are added to this process's environment."""
        self._log = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | variables,
        )

    def ask(self, question: str) -> dict[str, Any]:
        """Send a line, and wait for the answer."""
        assert self._process.stdin is not None
        print(question, file=self._process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Wait for the next answer.

        Raises:
            RuntimeError: the process ended, with the end of its log, or said nothing for `ANSWER_SECONDS`.
        """
        assert self._process.stdout is not None
        # An answer is one line, so that nothing of the next one is in the buffer.
        if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
            raise RuntimeError(f"the peer's process said nothing for {ANSWER_SECONDS:g} s; its log: {self._log.name}")
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer's process ended:\n{Path(self._log.name).read_text()[-3000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it, also within a step, which nobody waits for any more."""
        self._process.terminate()
        self._process.wait()
        self._log.close()

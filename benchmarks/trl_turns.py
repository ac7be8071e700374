"""What the processes of TRL's trainers share: taking turns, and responses of scheduled lengths."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TextIO

import torch
from transformers import LogitsProcessor, TrainerCallback

from benchmarks.memory import peak_mib


def answers_stream() -> TextIO:
    """Return standard output for answers alone; what libraries print goes to standard error from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


class Turns(TrainerCallback):
    """Holds a trainer between its steps until a line of standard input asks for the next one.

    Answers in lines of JSON: the step's seconds, the process's peak memory in MiB, and what `found` adds.
    """

    def __init__(
        self,
        answers: TextIO,
        begin: Callable[[str], None] = lambda line: None,
        found: Callable[[], dict[str, Any]] = dict,
        optimizer_steps: int = 1,
    ) -> None:
        """Take what a step is.

        Args:
            answers: where answers are written.
            begin: gets the line.
            found: what the step worked on.
            optimizer_steps: calls of `on_step_end` that make one step.
        """
        self._answers, self._begin, self._found = answers, begin, found
        self._optimizer_steps = optimizer_steps
        self._taken = 0
        self._started = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._answer({"ready": True})

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._taken += 1
        if self._taken % self._optimizer_steps == 0:
            seconds = time.perf_counter() - self._started
            self._answer({"seconds": seconds, "mib": peak_mib(os.getpid()), **self._found()})

    def _answer(self, what: dict[str, Any]) -> None:
        print(json.dumps(what), file=self._answers, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            os._exit(0)
        self._begin(line)
        self._started = time.perf_counter()


class ScheduledEnd(LogitsProcessor):
    """Writes the end-of-sequence token where a response's schedule says, and nowhere else."""

    def __init__(self, prompts: list[list[int]], eos: int, pad: int) -> None:
        self._prompts = [tuple(prompt) for prompt in prompts]
        self._context = len(prompts[0])
        self._eos, self._pad = eos, pad
        self._lengths: dict[tuple[int, ...], list[int]] = {}
        self._ends = torch.zeros(0)
        self.written = 0
        """Tokens asked of the step that runs."""

    def schedule(self, lengths: list[int]) -> None:
        """Set the lengths of the responses to the prompts, as many to each, prompt after prompt."""
        group = len(lengths) // len(self._prompts)
        self._lengths = {
            prompt: lengths[number * group : (number + 1) * group] for number, prompt in enumerate(self._prompts)
        }
        self.written = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        place = input_ids.shape[1] - self._context
        if place == 0:
            self._begin(input_ids.tolist())
        scores[:, [self._eos, self._pad]] = -torch.inf
        last = self._ends == place + 1
        scores[last] = -torch.inf
        scores[last, self._eos] = 0.0
        return scores

    def _begin(self, rows: list[list[int]]) -> None:
        """Give the responses to a prompt their lengths in the order of its rows."""
        taken: Counter[tuple[int, ...]] = Counter()
        ends = []
        for row in map(tuple, rows):
            ends.append(self._lengths[row][taken[row]])
            taken[row] += 1
        self._ends = torch.tensor(ends)
        self.written += sum(ends)

"""How many threads a rank on CPU computes with while others compute beside it."""

import os
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ThreadDemand:
    """Compute threads that workers on a rank's machine ask for together, its own among them; 0 where it is alone."""

    inferring: int = 0
    """While networks make forward passes."""
    training: int = 0
    """While networks take optimizer steps."""


def part_of(cpus: int, own: int, together: int) -> int:
    """Threads of a worker that asks for `own` of them.

    The threads of one worker wait for each other many times in each layer. Where all workers ask for more threads than
    there are CPUs, each waits for what another one computes, and all are slower than with as many threads as CPUs.
    """
    return own if together <= cpus else max(1, own * cpus // together)


class Threads:
    """Sets torch's threads for what a rank on CPU does next; on GPU they stay as they are.

    Args:
        device: of the rank.
        own: threads that its role asks for.
        demand: who computes beside it.
    """

    def __init__(self, device: torch.device, own: int, demand: ThreadDemand) -> None:
        self._on_cpu = device.type == "cpu"
        cpus = len(os.sched_getaffinity(0))
        self.inferring = part_of(cpus, own, demand.inferring)
        self.training = part_of(cpus, own, demand.training)

    def infer(self) -> None:
        """Forward passes come."""
        self._set(self.inferring)

    def train(self) -> None:
        """An optimizer step comes."""
        self._set(self.training)

    def _set(self, count: int) -> None:
        if self._on_cpu:
            torch.set_num_threads(count)

"""Chunked log-probabilities against log_softmax over all logits: forward and backward, time and extra peak memory.

Each measurement of memory runs in a process of its own, as the growth of the peak resident set (CPU) or of the
allocator's peak (GPU) over what inputs and outputs take. Times are medians of repeats that alternate between the two.

    python benchmarks/chunked_logprobs.py
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VOCAB, TOKENS = 32_000, 2_048
WAYS = ("plain", "chunked")


def inputs(hidden: int, device: str) -> "tuple[Tensor, Tensor, Tensor]":
    import torch

    generator = torch.Generator().manual_seed(0)
    states = torch.randn(TOKENS, hidden, generator=generator).to(device).requires_grad_()
    weight = (torch.randn(VOCAB, hidden, generator=generator) / hidden**0.5).to(device).requires_grad_()
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator).to(device)
    return states, weight, targets


def run(way: str, states: "Tensor", weight: "Tensor", targets: "Tensor") -> None:
    import torch

    from rlhf_ray.models.logprobs import chunked_logprobs

    states.grad = weight.grad = None
    if way == "plain":
        logits = torch.nn.functional.linear(states, weight)
        logprobs = torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)
    else:
        logprobs, _ = chunked_logprobs(states, weight, targets)
    logprobs.sum().backward()
    if states.is_cuda:
        torch.cuda.synchronize()


def peak_bytes(way: str, hidden: int, device: str) -> int:
    """Measure, in this process, how far the peak rises above what is there before, one small warm-up done."""
    import torch

    states, weight, targets = inputs(hidden, device)
    # Thread pools and buffers of the matrix library are made by a pass over few tokens.
    run(way, states.detach()[:8].requires_grad_(), weight, targets[:8])
    weight.grad = None
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(way, states, weight, targets)
        return torch.cuda.max_memory_allocated() - before
    before = resident("VmRSS")
    run(way, states, weight, targets)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return this process's bytes now (VmRSS) or at most (VmHWM); `getrusage` would count its parent's."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure_memory(way: str, hidden: int, device: str) -> int:
    command = [sys.executable, __file__, "--memory-of", way, "--hidden", str(hidden), "--device", device]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure_times(hidden: int, device: str, repeats: int) -> dict[str, float]:
    given = inputs(hidden, device)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for repeat in range(repeats + 1):
        for way in WAYS:
            started = time.perf_counter()
            run(way, *given)
            if repeat > 0:
                times[way].append(time.perf_counter() - started)
    return {way: statistics.median(values) for way, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--memory-of", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_bytes(arguments.memory_of, arguments.hidden[0], arguments.device))
        return
    import torch

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    for hidden in arguments.hidden:
        seconds = measure_times(hidden, arguments.device, arguments.repeats)
        memory = {
            way: statistics.median(measure_memory(way, hidden, arguments.device) for _ in range(3)) for way in WAYS
        }
        print(
            json.dumps(
                {
                    "vocabulary": VOCAB,
                    "tokens": TOKENS,
                    "hidden": hidden,
                    "time_ratio": round(seconds["chunked"] / seconds["plain"], 3),
                    "memory_ratio": round(memory["chunked"] / memory["plain"], 3),
                    "plain_seconds": round(seconds["plain"], 3),
                    "chunked_seconds": round(seconds["chunked"], 3),
                    "plain_mib": round(memory["plain"] / 2**20),
                    "chunked_mib": round(memory["chunked"] / 2**20),
                }
            )
        )


if __name__ == "__main__":
    main()

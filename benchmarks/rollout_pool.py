"""Rollout pool with one engine against bare vLLM: the same requests, parameters, binding and log-probabilities.

Both engines live through the whole run, each in a Ray actor's process with the same environment, and take turns; the
bare one is vLLM's offline `LLM`, timed within its process. Prints the ratio of the median throughputs.
"""

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray

from benchmarks.bare_vllm import BareEngine
from benchmarks.peer_process import ANSWER_SECONDS
from rlhf_ray.cluster.worker_environment import worker_environment
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.data.records import PromptRecord
from rlhf_ray.models.tiny import build_tiny
from rlhf_ray.rollout.engine import Engine
from rlhf_ray.rollout.interfaces import PromptBatch
from rlhf_ray.rollout.pool import RolloutPool, make_tasks
from rlhf_ray.rollout.remote import RemoteEngine
from rlhf_ray.rollout.requests import GenerationRequest
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn

VOCABULARY = 2048


@dataclass(frozen=True)
class Workload:
    """`requests` prompts of `prompt_tokens`, each answered by exactly `response_tokens`."""

    requests: int
    samples_per_prompt: int
    prompt_tokens: int
    response_tokens: int

    @property
    def tokens(self) -> int:
        """Tokens written in one repeat."""
        return self.requests * self.samples_per_prompt * self.response_tokens

    def prompts(self) -> list[PromptRecord]:
        """Make random prompts, of ordinary tokens."""
        rng = np.random.default_rng(0)
        ids = rng.integers(300, VOCABULARY, (self.requests, self.prompt_tokens)).astype(np.int32)
        return [PromptRecord(str(i), "", row) for i, row in enumerate(ids)]


class PoolUnderTest:
    """The product's pool over one engine actor."""

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, workload: Workload) -> None:
        from rlhf_ray.data.tokenization import Encoder
        from rlhf_ray.models.loading import load_tokenizer

        sampling = Sampling(max_tokens=workload.response_tokens, ignore_eos=True)
        self.rollout = SingleTurn(Encoder(load_tokenizer(model)), sampling)
        actor = _remote(Engine).remote(model, rollout, transport="gloo", index=0, seed=0)
        ray.get(actor.start.remote(), timeout=ANSWER_SECONDS)
        self._workload = workload
        self._pool = RolloutPool([RemoteEngine(actor, 0)], self.rollout, deadline_seconds=600)

    def seconds(self, prompts: Sequence[PromptRecord], repeat: int) -> float:
        """Measure the time until the last group has come, texts made."""
        count = self._workload.samples_per_prompt
        started = time.perf_counter()
        groups = list(self._pool.run(PromptBatch(prompts, step=repeat, version=0, samples_per_prompt=count, seed=0)))
        seconds = time.perf_counter() - started
        if sum(len(sample.response_ids) for group in groups for sample in group) != self._workload.tokens:
            raise RuntimeError("the pool returned responses of another length")
        return seconds


def measure(workload: Workload, repeats: int, warm_up: int, directory: Path) -> dict[str, Any]:
    """Measure tokens per second of both, by turns, and the ratio of the medians."""
    texts = ["The film was wonderful.", "这部电影很好看。"]
    build_tiny(directory, texts, hidden=256, layers=4, vocab_size=VOCABULARY)
    model = ModelConfig(path=str(directory), dtype="float32")
    rollout = RolloutConfig()
    bare = _remote(BareEngine).remote(model, rollout)
    pool = PoolUnderTest(model, rollout, workload)
    prompts = workload.prompts()
    speeds: dict[str, list[float]] = {"pool": [], "bare": []}
    for repeat in range(warm_up + repeats):
        tasks = make_tasks(PromptBatch(prompts, repeat, 0, workload.samples_per_prompt, 0), run=0)
        requests = [pool.rollout.request(task) for task in tasks]
        turns: dict[str, Callable[[], float]] = {
            "bare": partial(_bare_seconds, bare, requests),
            "pool": partial(pool.seconds, prompts, repeat),
        }
        # Who comes first changes, so that what else the machine does meets both alike.
        for name in sorted(turns, reverse=repeat % 2 == 0):
            seconds = turns[name]()
            if repeat >= warm_up:
                speeds[name].append(workload.tokens / seconds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "ratio": round(medians["pool"] / medians["bare"], 3),
        "tokens_per_second": {name: round(value) for name, value in medians.items()},
        "repeats": {name: [round(value) for value in values] for name, values in speeds.items()},
        "workload": asdict(workload),
    }


def _bare_seconds(bare: Any, requests: Sequence[GenerationRequest]) -> float:
    seconds: float = ray.get(bare.seconds.remote(requests), timeout=ANSWER_SECONDS)
    return seconds


def _remote(actor_class: type) -> Any:
    variables = worker_environment([], threads=1, one_node=True)
    return ray.remote(actor_class).options(num_cpus=1, runtime_env={"env_vars": variables})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--samples-per-prompt", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--response-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    given = parser.parse_args()
    workload = Workload(given.requests, given.samples_per_prompt, given.prompt_tokens, given.response_tokens)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(measure(workload, given.repeats, given.warm_up, Path(directory)), indent=2))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()

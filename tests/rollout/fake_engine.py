"""An engine in this process: answers depend on the request alone, arrival order and deaths on a script."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence

import numpy as np

from rlhf_ray.cluster.errors import RoleDied
from rlhf_ray.data.records import Prompt, PromptRecord, Sample, WeightSpan
from rlhf_ray.rollout.requests import Completion, GenerationRequest, GenerationResult, sample_seed


class FakeEncoder:
    ends = (0,)

    def response(
        self,
        prompt: Prompt,
        prompt_ids: np.ndarray,
        response_ids: np.ndarray,
        *,
        ended: bool,
        skip_special_tokens: bool,
    ) -> str:
        return " ".join(str(token) for token in response_ids if token not in self.ends)


class FakeEngine:
    """Dies (for good) after so many results, if told to."""

    def __init__(self, rank: int = 0, *, dies_after: int | None = None, shuffle: int = 0, version: int = 1) -> None:
        self.name = f"fake engine {rank}"
        self.rank = rank
        self.version = version
        self.calls: list[list[GenerationRequest]] = []
        self.closed_early = 0
        self.hangs_on: set[str] = set()
        self.queued: list[bool] = []
        self._left = dies_after
        self._random = random.Random(shuffle)

    async def generate(
        self, requests: Sequence[GenerationRequest], *, queued: bool
    ) -> AsyncGenerator[Sequence[GenerationResult], None]:
        self.calls.append(list(requests))
        self.queued.append(queued)
        todo = list(requests)
        self._random.shuffle(todo)
        try:
            while todo:
                await asyncio.sleep(0)
                size = self._random.randint(1, 3)
                answers, todo = [r for r in todo[:size] if self._answers(r)], todo[size:]
                if answers:
                    yield [self._result(request) for request in answers]
                if self._left == 0:
                    raise self._death("generate")
            while self.hangs_on:
                await asyncio.sleep(0.01)
        except (GeneratorExit, asyncio.CancelledError):
            self.closed_early += 1
            raise

    def _answers(self, request: GenerationRequest) -> bool:
        if self._left is not None:
            if self._left == 0:
                return False
            self._left -= 1
        return not any(word in request.request_id for word in self.hangs_on)

    def _death(self, phase: str) -> RoleDied:
        return RoleDied(f"{self.name} died", "rollout", self.rank, phase)

    def _result(self, request: GenerationRequest) -> GenerationResult:
        completions = [self._completion(request, index) for index in range(request.n)]
        self._random.shuffle(completions)
        return GenerationResult(request.request_id, completions)

    def _completion(self, request: GenerationRequest, index: int) -> Completion:
        rng = np.random.default_rng([sample_seed(request.seed, index), *request.prompt_ids.tolist()])
        length = int(rng.integers(1, request.max_tokens + 1))
        ids = rng.integers(1, 100, length).astype(np.int32)
        logprobs = -rng.exponential(size=length).astype(np.float32)
        return Completion(index, ids, logprobs, "stop", [WeightSpan(0, length, self.version)])


def prompts(count: int, *, start: int = 0) -> list[PromptRecord]:
    return [
        PromptRecord(str(i), f"prompt {i}", np.array([i, i + 1], np.int32), {"answer": i})
        for i in range(start, start + count)
    ]


def signature(sample: Sample) -> tuple[object, ...]:
    """What the policy wrote, to the bit; not how often it was asked."""
    return (
        sample.group_id,
        sample.index,
        sample.seed,
        sample.response,
        sample.response_ids.tobytes(),
        sample.behaviour_logprobs.tobytes(),
        tuple(sample.weight_versions),
    )

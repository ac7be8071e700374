"""The plain rollout: one request, its completions are the samples."""

import asyncio
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.data.records import Prompt, Sample
from rlhf_ray.data.tokenization import Ids
from rlhf_ray.rollout.interfaces import BadRollout, Generate, RolloutTask
from rlhf_ray.rollout.requests import Completion, GenerationRequest, GenerationResult, sample_seed


class Decoder(Protocol):
    """The part of an `Encoder` that knows where responses end and what they say."""

    @property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a response."""
        ...

    def response(
        self, prompt: Prompt, prompt_ids: Ids, response_ids: Ids, *, ended: bool, skip_special_tokens: bool
    ) -> str:
        """Return the text of a response to a prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings of sampling; the fields are mostly those of `GenerationRequest`."""

    max_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    top_p: float = 1.0
    top_k: int = 0
    ignore_eos: bool = False
    skip_special_tokens: bool = False
    """Not of the request: what the texts of responses leave out."""

    @classmethod
    def from_config(cls, config: RolloutConfig) -> "Sampling":
        """Take the one distribution that training may sample from: temperature, and nothing that cuts it."""
        return cls(
            max_tokens=config.max_new_tokens,
            temperature=config.temperature,
            stop=tuple(config.stop),
            skip_special_tokens=config.skip_special_tokens,
        )


class SingleTurn:
    """Asks for all samples of a prompt in one request, and for a greedy one, where it is wanted, in another."""

    def __init__(self, decoder: Decoder, sampling: Sampling) -> None:
        self._decoder = decoder
        self._sampling = sampling
        self._stop_token_ids = () if sampling.ignore_eos else tuple(decoder.ends)

    async def __call__(self, generate: Generate, task: RolloutTask) -> list[Sample]:
        """Return the samples of `task`, by index."""
        if not task.greedy_last:
            completions = checked_completions(await generate(self.request(task)), task.prompt.prompt_id, task.samples)
        else:
            completions = await self._with_greedy(generate, task)
        return [_sample(task, completion, self._text(task, completion)) for completion in completions]

    def _text(self, task: RolloutTask, completion: Completion) -> str:
        return self._decoder.response(
            task.prompt.prompt,
            task.prompt.prompt_ids,
            completion.token_ids,
            ended=completion.finish_reason == "stop",
            skip_special_tokens=self._sampling.skip_special_tokens,
        )

    async def _with_greedy(self, generate: Generate, task: RolloutTask) -> list[Completion]:
        drawn = replace(task, samples=task.samples - 1)
        greedy = replace(task, samples=1, request_id=f"{task.request_id}/greedy")
        requests = (self.request(drawn), replace(self.request(greedy), temperature=0.0))
        # Both have ended when one has failed, so that the next attempt begins alone.
        results = await asyncio.gather(*map(generate, requests), return_exceptions=True)
        completions: list[Completion] = []
        for result, part in zip(results, (drawn, greedy), strict=True):
            if isinstance(result, BaseException):
                raise result
            completions += checked_completions(result, part.prompt.prompt_id, part.samples)
        completions[-1] = replace(completions[-1], index=task.samples - 1)
        return completions

    def request(self, task: RolloutTask) -> GenerationRequest:
        """Write the request to the engine for a task."""
        how = self._sampling
        return GenerationRequest(
            request_id=task.request_id,
            prompt_ids=task.prompt.prompt_ids,
            n=task.samples,
            seed=task.seed,
            max_tokens=how.max_tokens,
            temperature=how.temperature,
            stop=how.stop,
            stop_token_ids=self._stop_token_ids,
            top_p=how.top_p,
            top_k=how.top_k,
            ignore_eos=how.ignore_eos,
        )


def checked_completions(result: GenerationResult, prompt_id: str, samples: int) -> list[Completion]:
    """Return the completions of a prompt by index, as many as were asked for.

    Raises:
        BadRollout: they are others, or have more or fewer log-probabilities than tokens.
    """
    completions = sorted(result.completions, key=lambda completion: completion.index)
    indices = [completion.index for completion in completions]
    if indices != list(range(samples)):
        raise BadRollout(f"prompt {prompt_id}: the engine returned completions {indices}, but {samples} were asked for")
    for completion in completions:
        if len(completion.logprobs) != len(completion.token_ids):
            raise BadRollout(
                f"prompt {prompt_id}, sample {completion.index}: the engine returned "
                f"{len(completion.logprobs)} log-probabilities for {len(completion.token_ids)} tokens"
            )
    return completions


def _sample(task: RolloutTask, completion: Completion, text: str) -> Sample:
    return Sample(
        prompt_id=task.prompt.prompt_id,
        group_id=task.group_id,
        index=completion.index,
        attempt=task.attempt + completion.attempt,
        seed=sample_seed(task.seed, completion.index),
        prompt=task.prompt.prompt,
        response=text,
        prompt_ids=task.prompt.prompt_ids,
        response_ids=completion.token_ids,
        written=np.ones(len(completion.token_ids), dtype=bool),
        behaviour_logprobs=completion.logprobs,
        weight_versions=completion.weight_spans,
        finish_reason=completion.finish_reason,
        columns=task.prompt.columns,
    )

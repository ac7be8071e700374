"""What the pool asks of an engine, and what comes back: token ids in, token ids out."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jaxtyping import Float32, Int32

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.records import EngineFinish, WeightSpan

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be continued `n` times; one request whatever `n` is."""

    request_id: str
    """Unique among the requests of an engine that have not ended."""
    prompt_ids: Int32[np.ndarray, " prompt"]
    n: int
    seed: int
    """Completion i draws its tokens from a generator of its own, seeded with `sample_seed(seed, i)`."""
    max_tokens: int
    temperature: float = 1.0
    stop: tuple[str, ...] = ()
    """Texts that end a completion; the engine must decode while it writes, which costs time, so only when needed."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion, besides the model's own end-of-sequence token; kept as its last token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 takes all tokens."""
    ignore_eos: bool = False
    """Write `max_tokens` tokens whatever they are (benchmarks)."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation of a prompt."""

    index: int
    """0 <= index < n."""
    token_ids: Int32[np.ndarray, " tokens"]
    """With the end-of-sequence token where the model wrote one."""
    logprobs: Float32[np.ndarray, " tokens"]
    """Log-probabilities under the distribution that was sampled from: temperature, top-p and top-k applied."""
    finish_reason: EngineFinish
    weight_spans: list[WeightSpan]
    """Which version wrote which tokens; they cover all of them, in order."""
    attempt: int = 0
    """How often the request was sent before this answer came; the pool counts."""


@dataclass(frozen=True, slots=True)
class GenerationResult:
    """All continuations of one request, by index."""

    request_id: str
    completions: list[Completion] = field(default_factory=list)


def sample_seed(seed: int, index: int) -> int:
    """Return the seed of completion `index` of a request: the engine adds the index.

    Seeds of requests should therefore lie further apart than `n`, or be drawn from a large range.
    """
    return seed + index


def sampling_params(request: GenerationRequest) -> "SamplingParams":
    """Translate a request for vLLM: one final output with sampled log-probabilities, decoded only where stop texts need
    it.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        n=request.n,
        seed=request.seed,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=list(request.stop),
        stop_token_ids=list(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logprobs=0,
        flat_logprobs=True,
        detokenize=bool(request.stop),
        # Stop texts are looked for in what the policy wrote, marks such as `</think>` included.
        skip_special_tokens=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def generation_result(output: "RequestOutput") -> GenerationResult:
    """Return a finished request as plain arrays."""
    return GenerationResult(output.request_id, [_completion(completion) for completion in output.outputs])


def _completion(output: "CompletionOutput") -> Completion:
    return Completion(
        index=output.index,
        token_ids=np.asarray(output.token_ids, dtype=np.int32),
        logprobs=np.asarray(output.logprobs.logprobs, dtype=np.float32),  # type: ignore[union-attr]
        finish_reason=_finish_reason(output),
        weight_spans=[WeightSpan(s.start, s.end, int(s.version)) for s in output.weight_versions or []],
    )


def _finish_reason(output: "CompletionOutput") -> EngineFinish:
    for reason in get_args(EngineFinish):
        if output.finish_reason == reason:
            return reason
    raise RlhfError(
        f"rollout engine: completion {output.index} ended with {output.finish_reason!r}; the engine's log says why"
    )


COALESCE_SECONDS = 0.02
"""Groups that finish within this time travel together: a message per group would cost more than the wait."""


async def put_result(output: Any, finished: "asyncio.Queue[GenerationResult | BaseException]") -> None:
    """Put a request's result, or why there is none, where `next_results` finds it."""
    try:
        finished.put_nowait(generation_result(await output.get()))
    except Exception as error:
        finished.put_nowait(error)


async def next_results(
    finished: "asyncio.Queue[GenerationResult | BaseException]", remaining: int
) -> list[GenerationResult]:
    """Wait for a group, then for its neighbours in time, or until nothing remains to wait for."""
    batch = [await finished.get()]
    with suppress(TimeoutError):
        async with asyncio.timeout(COALESCE_SECONDS):
            while len(batch) < remaining:
                batch.append(await finished.get())
    results = []
    for result in batch:
        if isinstance(result, BaseException):
            raise result
        results.append(result)
    return results

"""Bare vLLM, the peer and the floor of several benchmarks: the offline class with the product's engine arguments."""

import os
import time
from collections.abc import Sequence

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.rollout.engine_arguments import engine_arguments, engine_environment
from rlhf_ray.rollout.requests import GenerationRequest, sampling_params

# What only an engine that takes new weights needs.
TRANSFER_ARGUMENTS = ("weight_transfer_config", "worker_extension_cls")


class BareEngine:
    """vLLM's `LLM`, timed within its own process; no actor call happens meanwhile."""

    def __init__(self, model: ModelConfig, rollout: RolloutConfig, max_tokens: int | None = None) -> None:
        # The product's engine sets this environment while it starts; here it must be set before vLLM is imported.
        os.environ.update(engine_environment(rollout, transport="gloo", index=0))
        from vllm import LLM

        arguments = engine_arguments(model, rollout, transport="gloo", seed=0, max_tokens=max_tokens)
        self._engine = LLM(**{name: value for name, value in arguments.items() if name not in TRANSFER_ARGUMENTS})

    def seconds(self, requests: Sequence[GenerationRequest]) -> float:
        """Measure the time to answer all requests."""
        from vllm import TokensPrompt

        prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids.tolist()) for request in requests]
        parameters = [sampling_params(request) for request in requests]
        started = time.perf_counter()
        outputs = self._engine.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - started
        for request, output in zip(requests, outputs, strict=True):
            if any(len(completion.token_ids) != request.max_tokens for completion in output.outputs):
                raise RuntimeError("bare vLLM returned responses of another length")
        return seconds

"""One vLLM engine: generation from token ids, scoring, and weights that change under it."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, Int32

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.models.facts import checkpoint_shapes
from rlhf_ray.models.loading import engine_tokenizer
from rlhf_ray.rollout.engine_arguments import engine_arguments, engine_environment, gpu_arguments, set_environment
from rlhf_ray.rollout.engine_files import END_SECONDS, EngineFiles, replace_adapter
from rlhf_ray.rollout.requests import (
    GenerationRequest,
    GenerationResult,
    next_results,
    put_result,
    sampling_params,
)
from rlhf_ray.transfer.errors import ManifestMismatch, TransferError
from rlhf_ray.transfer.group import TransferGroup, Transport
from rlhf_ray.transfer.manifest import Manifest
from rlhf_ray.transfer.verification import HeldWeights

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.engine.async_llm import AsyncLLM

    from rlhf_ray.transfer.vllm_adapter import EngineLink


class EngineDirty(RlhfError):
    """The engine's weights are undefined, because a transfer broke off; it serves nothing until the next one."""


class Engine:
    """A vLLM `AsyncLLM` that generates groups of completions and takes new weights; one asyncio loop uses it.

    Jobs host it as a Ray actor, whose `generate` streams (call it with `num_returns="streaming"`).

    Args:
        model: the checkpoint that it starts from, and its type.
        rollout: devices, threads, further engine arguments.
        transport: how new weights arrive.
        index: of this engine among all; chooses its CPUs.
        seed: of vLLM's own random state; requests bring theirs.
        max_tokens: longest prompt and response together; None for the model's own limit.
        version: of the weights that the checkpoint holds.
        lora: of adapters that it will load; None for none.
        load_seconds: until all its processes must have loaded.
        neighbours: processes of other roles on its GPUs, which take turns with it.
    """

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        *,
        transport: Transport = "gloo",
        index: int = 0,
        seed: int = 0,
        max_tokens: int | None = None,
        version: int = 0,
        lora: LoraConfig | None = None,
        load_seconds: float = 600.0,
        neighbours: int = 0,
    ) -> None:
        self._neighbours = neighbours
        self._model = model
        self._rollout = rollout
        self._index = index
        self.version = version
        """Weights that the next token will be written with."""
        self._arguments = engine_arguments(
            model, rollout, transport=transport, seed=seed, max_tokens=max_tokens, lora=lora, load_seconds=load_seconds
        )
        self._environment = engine_environment(rollout, transport=transport, index=index, load_seconds=load_seconds)
        self._started: AsyncLLM | None = None
        self._files: EngineFiles | None = None
        self._link: EngineLink | None = None
        self._adapter: LoRARequest | None = None
        self._group: TransferGroup | None = None
        self._shapes = checkpoint_shapes(model.path)
        self._broken: str | None = None
        self._without_cache = False
        self._scores = 0

    @property
    def _llm(self) -> "AsyncLLM":
        if self._started is None:
            raise RlhfError(f"rollout engine {self._index}: not started")
        return self._started

    @property
    def workers(self) -> int:
        """Tensor-parallel size."""
        return self._arguments["tensor_parallel_size"]

    async def start(self, *before: object) -> int:
        """Load the model, which takes 10 s and more; returns the number of the engine's workers.

        Args:
            before: results of engines on the same GPU that loaded before: vLLM measures what is free on it.
        """
        self._files = EngineFiles()
        with set_environment(self._environment | self._files.environment):
            from vllm import AsyncEngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

            share = gpu_arguments(self._rollout, self._neighbours)
            # vLLM decodes too, where it looks for stop texts: by the tokenizer that everything else here reads by.
            with engine_tokenizer(self._model) as tokenizer:
                arguments = AsyncEngineArgs(**{**self._arguments, **share, "tokenizer": tokenizer})
                # The offline context has the larger default batch, which rollouts want.
                self._started = AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.LLM_CLASS)
        self._files.note(*await self._llm.collective_rpc("rendezvous_file"))
        await self._llm.update_weight_version(str(self.version))
        return self.workers

    async def generate(
        self, requests: Sequence[GenerationRequest], *, queued: bool = False
    ) -> AsyncIterator[list[GenerationResult]]:
        """Continue prompts; yields groups as they finish, several at a time where they finish together.

        Args:
            requests: what to generate; they enter the engine in this order.
            queued: hold the engine until it has all of them. Then equal requests give equal completions bit for bit,
                provided that nothing else runs; otherwise the moment at which each arrives decides with which others
                it shares a batch, and rounding with it.

        Raises:
            EngineDirty: a transfer broke off before or meanwhile.
        """
        self._check_clean()
        finished: asyncio.Queue[GenerationResult | BaseException] = asyncio.Queue()
        waiting: list[asyncio.Task[None]] = []
        try:
            if queued:
                await self._pause_scheduler(clear_cache=False)
            for request in requests:
                output = await self._submit(request.request_id, request.prompt_ids, sampling_params(request))
                waiting.append(asyncio.create_task(put_result(output, finished)))
            if queued:
                await self._llm.resume_generation()
            remaining = len(waiting)
            while remaining:
                batch = await next_results(finished, remaining)
                self._check_clean()
                remaining -= len(batch)
                yield batch
        finally:
            await self._abandon(requests, waiting)

    async def _submit(self, request_id: str, ids: np.ndarray, params: "SamplingParams") -> Any:
        from vllm.inputs.engine import tokens_input

        return await self._llm.add_request(request_id, tokens_input(ids.tolist()), params, lora_request=self._adapter)

    async def _abandon(self, requests: Sequence[GenerationRequest], waiting: list[asyncio.Task[None]]) -> None:
        """Abort what has not finished, when the caller stopped listening."""
        left = [request.request_id for request, task in zip(requests, waiting, strict=False) if not task.done()]
        for task in waiting:
            task.cancel()
        if left:
            await self._llm.abort(left)

    async def _pause_scheduler(self, clear_cache: bool) -> None:
        # `pause_generation` does the same and then sleeps 20 ms for the sake of orderly logs.
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache)

    async def _resume(self) -> None:
        if not self._without_cache:  # it goes on by itself once its cache is awake
            await self._llm.resume_generation()

    async def score(self, sequences: Sequence[Int32[np.ndarray, " tokens"]]) -> list[Float32[np.ndarray, " tokens-1"]]:
        """Return the log-probability of each token after the first, at temperature 1, by the engine's own weights.

        Raises:
            EngineDirty: a transfer broke off.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._check_clean()
        # Asking for prompt log-probabilities keeps vLLM from reading the prefix cache, so all positions are computed.
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        outputs = []
        for sequence in sequences:
            self._scores += 1
            outputs.append(await self._submit(f"score-{self._scores}", sequence, params))
        results = [await output.get() for output in outputs]
        return [np.asarray(result.prompt_logprobs.logprobs, dtype=np.float32) for result in results]

    async def connect_transfer(self, group: TransferGroup, engine: int | None = None) -> None:
        """Join a transfer group, leaving the one before; returns when sender and all engines have met.

        Args:
            group: as the sender opened it.
            engine: index of this engine in the group; its own index unless given.

        Raises:
            TransferError: not everybody came in time.
        """
        from rlhf_ray.transfer.vllm_adapter import EngineLink

        await self.disconnect_transfer()
        link = EngineLink(self._llm, group, self._index if engine is None else engine)
        await self._within(link.open(), group.seconds, "rendezvous")
        self._link, self._group = link, group

    async def disconnect_transfer(self) -> None:
        """Leave the transfer group, if in one."""
        if self._link is not None:
            if self._broken is not None:
                await self._link.abandon()
            await self._link.close()
            self._link = self._group = None

    async def receive(self, manifest: Manifest, version: int) -> dict[str, float]:
        """Take new weights from the group's sender.

        While these are gathered requests in flight are answered on; they wait from the first bucket on, and then go on
        with the new weights.

        Args:
            manifest: what the sender will send.
            version: number of the new weights.

        Returns:
            Seconds: `pause`, for which no request was answered, within it `wire`, waiting for tensors, and `load`; and
            `receive`, from this call to its end.

        Raises:
            ManifestMismatch: the announcement does not fit this engine, which goes on with its old weights.
            TransferError: the transfer did not begin; or it broke off, and the engine is dirty.
        """
        link, group = self._check_announcement(manifest)
        started = time.perf_counter()
        pausing: list[float] = []

        async def update() -> None:
            await link.announced()
            pausing.append(time.perf_counter())
            if self._broken is not None:
                await link.abandon()
            # Without caches requests in flight compute their prompts anew: no token sees two weights at once.
            await self._pause_scheduler(clear_cache=True)
            await link.receive(manifest, version)

        try:
            await self._within(update(), group.seconds, f"version {version}")
        except BaseException as error:
            if pausing:
                self._broken = f"transfer of version {version} broke off: {error}"
            raise
        await self._llm.reset_prefix_cache()
        self._broken = None
        self.version = version
        await self._resume()
        resumed = time.perf_counter()
        return {**await link.timings(), "pause": resumed - pausing[0], "receive": resumed - started}

    async def held_weights(self) -> HeldWeights:
        """Return the bit sums of the weights that stand in the engine since its last transfer.

        Raises:
            TransferError: it is in no transfer group.
        """
        self._check_clean()
        if self._link is None:
            raise TransferError(f"rollout engine {self._index}: in no transfer group; connect it first")
        return await self._link.held_weights()

    def _check_announcement(self, manifest: Manifest) -> "tuple[EngineLink, TransferGroup]":
        if self._link is None or self._group is None:
            raise TransferError(f"rollout engine {self._index}: in no transfer group; connect it first")
        if manifest.digest != self._group.manifest_digest:
            raise ManifestMismatch(
                f"rollout engine {self._index}: the announced tensors are not those of transfer group "
                f"{self._group.generation}; open a new group for another model"
            )
        manifest.check_dtype(self._model.dtype)
        if self._shapes is not None:
            manifest.check_shapes(self._shapes)
        return self._link, self._group

    async def _within(self, step: Any, seconds: float, what: str) -> Any:
        """Await a step of a transfer; vLLM's errors and a passed deadline become a TransferError."""
        try:
            return await asyncio.wait_for(step, seconds)
        except TransferError:
            raise
        except TimeoutError as error:
            raise TransferError(
                f"rollout engine {self._index}: weight transfer, {what}: not done within {seconds:g} s"
            ) from error
        except Exception as error:
            raise TransferError(f"rollout engine {self._index}: weight transfer, {what}: {error}") from error

    def _check_clean(self) -> None:
        if self._broken is not None:
            raise EngineDirty(
                f"rollout engine {self._index}: serves nothing until a complete transfer of weights ({self._broken})"
            )

    async def load_adapter(self, files: Mapping[str, bytes], version: int) -> dict[str, float]:
        """Take a new adapter in place of the one before; requests in flight wait and go on with it.

        Args:
            files: of the adapter as PEFT writes them, by name.
            version: number of the weights that base and adapter make.

        Returns:
            Seconds: `pause`, for which no request was answered, and within it `load`; and `bytes` of the adapter.

        Raises:
            TransferError: vLLM did not take it, and the engine is dirty.
        """
        started = time.perf_counter()
        await self._pause_scheduler(clear_cache=True)
        paused = time.perf_counter()
        try:
            self._adapter = await replace_adapter(self._llm, files, version)
        except BaseException as error:
            self._broken = f"loading the adapter of version {version} broke off: {error}"
            if not isinstance(error, Exception):
                raise
            raise TransferError(f"rollout engine {self._index}: {self._broken}") from error
        loaded = time.perf_counter()
        await self._llm.update_weight_version(str(version))
        await self._llm.reset_prefix_cache()
        self._broken, self.version = None, version
        await self._resume()
        size = float(sum(map(len, files.values())))
        return {"pause": time.perf_counter() - started, "load": loaded - paused, "bytes": size}

    async def health(self) -> None:
        """Return if the engine's processes live.

        Raises:
            RlhfError: they do not.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.check_health()
        except EngineDeadError as error:
            raise RlhfError(f"rollout engine {self._index}: its processes died; its log says why") from error

    async def sleep(self, level: int = 1) -> None:
        """Free GPU memory: 1 moves weights to the host and drops the cache, 2 drops both; requests wait. Not on CPU."""
        if self._rollout.gpus_per_worker > 0:
            await _unless_dead(self._llm.sleep(level, mode="keep"))
            self._without_cache = True

    async def wake(self, tags: Sequence[str] | None = None) -> None:
        """Take GPU memory back: `weights`, `kv_cache`, or everything. Nothing on CPU."""
        if self._rollout.gpus_per_worker > 0:
            await _unless_dead(self._llm.wake_up(list(tags) if tags is not None else None))
            self._without_cache = self._without_cache and tags is not None and "kv_cache" not in tags

    def shutdown(self) -> None:
        """End the engine's processes, after END_SECONDS by force, and remove what they leave behind."""
        if self._files is None:
            return
        files = self._files
        try:
            files.note()
            if self._started is not None:
                self._started.shutdown(timeout=END_SECONDS)
        finally:
            self._started = self._files = None
            files.remove()
        # The engine is part of reference cycles; collected at the interpreter's end, its destructor would fail.
        gc.collect()


async def _unless_dead(change: Awaitable[object]) -> None:
    """Wait for a change of turns. Processes that are dead hold no device, and the next request finds them dead."""
    from vllm.v1.engine.exceptions import EngineDeadError

    with suppress(EngineDeadError):
        await change

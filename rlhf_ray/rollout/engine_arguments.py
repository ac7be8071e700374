"""From what a user says to what vLLM is told: arguments, environment. Imports neither vLLM nor torch at first."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from typing import Any, Literal

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.lora import ENGINE_RANKS, LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.transfer.group import Transport

CPU_CACHE_BYTES = 2**30
"""Key-value cache of a CPU engine unless `kv_cache_memory_bytes` says otherwise; vLLM would take most of the RAM."""

GPU_SHARE = 0.9
"""Part of its share of a GPU that an engine fills; the rest is for CUDA contexts and fragmentation."""

CUDA_CONTEXT_BYTES = 0.45 * 2**30
"""Memory that each process with a CUDA context holds of its GPU, also while it sleeps."""

HUGE_PAGES = "glibc.malloc.hugetlb=1"
"""Back large allocations by huge pages: packing allocates each weight anew, and on virtual machines the first touch of
a small page costs ten times the copy that follows."""


def choose_transport(rollout: RolloutConfig, overlap: Literal["none", "some", "all"]) -> Transport:
    """Choose how weights travel: as the config says, or as fits where engines and policy are.

    Args:
        rollout: the engines' section.
        overlap: how many of the engines' GPUs are also the policy's.

    Raises:
        BadInput: the config's choice does not work with engines on this kind of device, or no transport does.
    """
    on_gpu = rollout.gpus_per_worker > 0
    if overlap == "some":
        raise BadInput(
            "rollout: some of the engines' GPUs are the policy's and some are not, and no transport serves both; give "
            "the policy more workers, the engines fewer, or put them on groups of their own"
        )
    if overlap == "all" and rollout.transport == "nccl":
        raise BadInput(
            "rollout.transport: nccl cannot join two processes on one GPU, and the engines' GPUs are the policy's; use "
            "auto, which is ipc here, or put the engines on a group of their own"
        )
    if rollout.transport == "auto":
        if not on_gpu:
            return "gloo"
        return "ipc" if overlap == "all" else "nccl"
    if on_gpu == (rollout.transport == "gloo"):
        device, right = ("GPU", "nccl or ipc") if on_gpu else ("CPU", "gloo")
        raise BadInput(f"rollout.transport: {rollout.transport} does not reach {device} engines; use {right}, or auto")
    return rollout.transport


def tensor_parallel_size(rollout: RolloutConfig) -> int:
    """Count the workers of one engine.

    Raises:
        BadInput: `tensor_parallel` contradicts `gpus_per_worker`, or that is neither a fraction nor whole.
    """
    gpus = rollout.gpus_per_worker
    if gpus == 0:
        return rollout.tensor_parallel or 1
    if gpus > 1 and gpus != int(gpus):
        raise BadInput(f"rollout.gpus_per_worker: {gpus:g} GPUs cannot be divided; give a whole number, or at most 1")
    size = max(1, int(gpus))
    if rollout.tensor_parallel not in (None, size):
        raise BadInput(f"rollout.tensor_parallel: {rollout.tensor_parallel} contradicts gpus_per_worker {gpus:g}")
    return size


def gpu_share(rollout: RolloutConfig, neighbours: int, gpu_bytes: float) -> float:
    """Return the part of a GPU that an engine fills, vLLM's gpu_memory_utilization.

    An engine that shares the GPU in turns has all of its share while it generates, but for the CUDA contexts of others.

    Args:
        rollout: the engines' section, which may say it itself.
        neighbours: processes of other roles on the GPU.
        gpu_bytes: memory of the GPU.
    """
    own = rollout.engine.get("gpu_memory_utilization")
    if own is not None:
        return float(own)
    whole = GPU_SHARE - neighbours * CUDA_CONTEXT_BYTES / gpu_bytes
    return round(max(0.01, whole) * min(1.0, rollout.gpus_per_worker), 3)


def gpu_arguments(rollout: RolloutConfig, neighbours: int) -> dict[str, float]:
    """Return what an engine is told of the GPU that its process has; nothing on CPU. See `gpu_share`."""
    if not rollout.gpus_per_worker:
        return {}
    from vllm.platforms import current_platform  # asks the driver's library, without a CUDA context

    return {"gpu_memory_utilization": gpu_share(rollout, neighbours, current_platform.get_device_total_memory())}


def engine_arguments(
    model: ModelConfig,
    rollout: RolloutConfig,
    *,
    transport: Transport,
    seed: int,
    max_tokens: int | None,
    lora: LoraConfig | None = None,
    load_seconds: float = 600.0,
) -> dict[str, Any]:
    """Return the arguments of `AsyncEngineArgs` for one engine; the user's own, `rollout.engine`, come last.

    Args:
        model: what to load.
        rollout: the engines' section.
        transport: how its weights arrive.
        seed: of vLLM's own random state; requests bring theirs.
        max_tokens: longest prompt and response together; None for the model's own limit.
        lora: of adapters that it will load; None for none.
        load_seconds: until all workers must have loaded.
    """
    arguments: dict[str, Any] = {
        "model": model.path,
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "load_format": "safetensors",
        "seed": seed,
        "tensor_parallel_size": tensor_parallel_size(rollout),
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": f"rlhf_{transport}"},
        "worker_extension_cls": "rlhf_ray.transfer.vllm_adapter.TransferWorkerExtension",
        # vLLM would otherwise take Ray's executor inside a Ray actor, which asks Ray for devices of its own.
        "distributed_executor_backend": "uni" if tensor_parallel_size(rollout) == 1 else "mp",
        "disable_log_stats": True,
    }
    if tensor_parallel_size(rollout) > 1:
        # Workers that have loaded wait for the others in a collective.
        arguments["distributed_timeout_seconds"] = ceil(load_seconds)
    if lora is not None:
        # One adapter, replaced in place; there is room for ranks of a few sizes only.
        rank = next(size for size in ENGINE_RANKS if size >= lora.r)
        arguments |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 1, "max_lora_rank": rank}
    if max_tokens is not None:
        arguments["max_model_len"] = max_tokens
    if rollout.gpus_per_worker == 0:
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": CPU_CACHE_BYTES}
    else:
        arguments["enable_sleep_mode"] = True
    return arguments | rollout.engine


def engine_environment(
    rollout: RolloutConfig,
    *,
    transport: Transport,
    index: int,
    cpus: Sequence[int] | None = None,
    load_seconds: float = 600.0,
) -> dict[str, str]:
    """Return the environment in which an engine's processes must start.

    Args:
        rollout: the engines' section.
        transport: how its weights arrive.
        index: of the engine; neighbours are bound to other CPUs.
        cpus: logical CPUs to choose from; those of this process unless given.
        load_seconds: until its processes must have loaded.
    """
    environment = {
        "VLLM_ENGINE_READY_TIMEOUT_S": str(ceil(load_seconds)),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
    }
    if transport == "ipc":
        # The handles of shared GPU buffers reach the workers pickled; they are signed on their way.
        environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if rollout.gpus_per_worker == 0:
        # Without it the first requests wait up to 15 s for compilations that bring nothing on CPU.
        environment["TORCH_COMPILE_DISABLE"] = "1"
        environment["GLIBC_TUNABLES"] = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), HUGE_PAGES]))
        available = sorted(os.sched_getaffinity(0)) if cpus is None else list(cpus)
        environment |= _binding_environment(worker_cpus(rollout, index, available))
    return environment


def _binding_environment(cpus: list[list[int]]) -> dict[str, str]:
    """Bind the workers' threads: vLLM does it for several workers in processes of their own.

    A single worker lives in the engine's process, which spares a copy of the libraries (0.7 GB, several seconds of
    start) and a process that polls for work. There the OpenMP runtime must find its binding when it is loaded.
    """
    lists = [",".join(str(cpu) for cpu in worker) for worker in cpus]
    if len(cpus) > 1:
        return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(lists)}
    return {
        "VLLM_CPU_OMP_THREADS_BIND": lists[0],
        # Else vLLM moves a single CPU worker out into a process again.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": str(len(cpus[0])),
        "OMP_PLACES": f"{{{lists[0]}}}",
        "OMP_PROC_BIND": "true",
    }


def worker_cpus(rollout: RolloutConfig, index: int, cpus: Sequence[int]) -> list[list[int]]:
    """List the CPUs of each worker of engine `index`; engines and workers follow each other around all.

    Unbound threads are 4 to 30 times slower.
    """
    workers, threads = tensor_parallel_size(rollout), min(rollout.threads or 1, len(cpus))
    first = index * workers * threads
    return [sorted(cpus[(first + w * threads + t) % len(cpus)] for t in range(threads)) for w in range(workers)]


@contextmanager
def set_environment(values: dict[str, str]) -> Iterator[None]:
    """Set environment variables while an engine's processes start, which inherit them."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value

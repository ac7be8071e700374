"""Memory that the roles of a job need, estimated from parameter counts; nothing is loaded.

Weights, gradients and optimizer state follow ZeRO (Rajbhandari et al. 2020); activations are 34 bytes a token, hidden
unit and layer in 16 bits, or the layers' inputs and one layer's activations where they are recomputed (Korthikanti et
al. 2022). The backward pass of the output head is that of `models.logprobs`. What processes hold before they hold a
model is measured on CPU, see `worker_process`; of GPUs it is what is usual, and was not measured here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from rlhf_ray.config.lora import ALL_LINEAR, LoraConfig
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.placement import SCORE, SYNC, PlacementConfig
from rlhf_ray.config.rewards import RewardSource
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.models.logprobs import CHUNK_BYTES_CPU, CHUNK_BYTES_GPU
from rlhf_ray.rollout.engine_arguments import CPU_CACHE_BYTES, CUDA_CONTEXT_BYTES, gpu_share, tensor_parallel_size
from rlhf_ray.training.optimizer import COLLECTIVE_BUCKET

DTYPE_BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2}
QUANTIZED_BYTES = 0.53
"""Per frozen parameter in 4 bits, with its share of the doubly quantized scales (Dettmers et al. 2023)."""
ACTIVATION_BYTES = 34
"""Per token, hidden unit and layer, in 16 bits and with an attention kernel that keeps no score matrix."""

LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 gathers at most before it gives some back: DeepSpeed's `stage3_max_live_parameters`."""

LOGIT_CHUNKS = 3
"""Chunks of logits that are there at the same time: as they are, in float32, and their gradient."""

FRAGMENTATION = 0.05
"""Share of what torch has allocated on a GPU that lies between its pieces."""

COMMUNICATOR = 256 * 2.0**20
"""Buffers of NCCL in each process that has peers; not measured here."""

ENGINE_TOKENS = 16384
"""Tokens of an engine's largest batch (vLLM's default for offline use), with whose activations it measures itself."""

PINNED_ROUNDING = 2
"""An engine's sleeping weights lie in torch's pinned memory, which rounds each piece up to a power of two."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model on which memory depends."""

    parameters: int
    output_head: int
    """Parameters of an output head that is not tied, which scalar models do without."""
    hidden: int
    layers: int
    kv_width: int
    """Key and value heads times their size."""
    vocabulary: int = 0
    """Parameters of the output head, tied or not."""
    largest: int = 0
    """Parameters of the largest tensor, which travels to engines alone."""
    linear_widths: Mapping[str, int] = field(default_factory=dict)
    """Inputs and outputs together of each linear layer of the blocks, by its full name."""

    def adapter_parameters(self, lora: LoraConfig) -> int:
        """Count the parameters of an adapter: two factors of each layer's update."""
        everywhere = lora.target_modules == [ALL_LINEAR]
        widths = (
            width
            for name, width in self.linear_widths.items()
            if everywhere or any(f".{name}".endswith(f".{target}") for target in lora.target_modules)
        )
        return lora.r * sum(widths)


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one worker, by part."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    """Of forward and backward passes; of an engine, those of its largest batch."""
    forward: float = 0
    """Activations and logits of forward passes alone."""
    head: float = 0
    """Backward pass of the output head: gradients of its weight in several types, and chunks of logits."""
    gathered: float = 0
    """Weights of other ranks that are there meanwhile (ZeRO-3), and DeepSpeed's buffers of collectives."""
    transfer: float = 0
    """Buffers of a weight sync."""
    cache: float = 0
    cached_tokens: float = 0
    """Tokens of which the cache holds keys and values."""
    process: float = 0
    """Present also while the role sleeps: on a GPU its CUDA context, on CPU Python and what it imports."""
    fragmentation: float = 0
    """Share of the rest that is lost between its pieces."""
    asleep: float = 0
    """Host memory for what is on the GPU, where the role takes turns."""
    beside: float = 0
    """Host memory of a worker on a GPU, in any case."""
    copied: float = 0
    """Host memory from which a checkpoint is written, while training goes on."""
    parameters: float = 0
    """Of the whole network."""

    @property
    def state(self) -> float:
        """Return what stays from pass to pass."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """Return the bytes of a worker that never sleeps."""
        work = max(self.activations + self.head, self.forward, self.transfer)
        return self._besides + (self.state + self.gathered + self.cache + work) * (1 + self.fragmentation)

    def in_phase(self, phase: str) -> float:
        """Return the bytes of an awake worker: in a weight sync, in forward passes, or in its main work."""
        work = {SYNC: self.transfer, SCORE: self.forward}.get(phase, self.activations + self.head + self.cache)
        return self._besides + (self.state + self.gathered + work) * (1 + self.fragmentation)

    @property
    def _besides(self) -> float:
        """Return what the device holds beside the model: a GPU not what a checkpoint is written from."""
        on_gpu = bool(self.beside)
        return self.process if on_gpu else self.process + self.copied


def trainer_memory(shape: ModelShape, trainer: TrainerConfig, dtype: Dtype, tokens: int, scalar: bool) -> WorkerMemory:
    """Estimate the memory of one rank of a trained model.

    Args:
        shape: of the model.
        trainer: its section.
        dtype: of forward and backward passes.
        tokens: of a micro-batch, padding counted.
        scalar: whether a scalar head replaces the output head.
    """
    parameters = shape.parameters - (shape.output_head if scalar else 0)
    ranks, size = trainer.workers, DTYPE_BYTES[dtype]
    # In bfloat16, stage 0 runs as stage 1; gradients are added up in float32 and master weights are kept beside.
    stage = max(trainer.zero_stage, 1) if dtype == "bfloat16" else trainer.zero_stage
    gradient_bytes = 4 if dtype == "float32" else 6
    optimizer_bytes = 8 if stage == 0 else 12
    offload = trainer.deepspeed.get("zero_optimization", {})
    optimizer_offloaded = isinstance(offload, dict) and "offload_optimizer" in offload
    layer = ACTIVATION_BYTES * size / 2 * tokens * shape.hidden
    if trainer.gradient_checkpointing:
        activations = size * tokens * shape.hidden * shape.layers + layer
    else:
        activations = layer * shape.layers
    trained, weights = float(parameters), float(parameters * size)
    if trainer.lora is not None:
        # What is frozen has neither gradients nor optimizer state.
        trained = shape.adapter_parameters(trainer.lora)
        weights = trained * size + parameters * (QUANTIZED_BYTES if trainer.lora.load_in_4bit else size)
    logits = 0.0 if scalar else _logit_bytes(shape, tokens, bool(trainer.gpus_per_worker))
    optimizer = trained * optimizer_bytes / (ranks if stage >= 1 else 1)
    memory = WorkerMemory(
        weights=weights / (ranks if stage == 3 else 1),
        gradients=trained * gradient_bytes / (ranks if stage >= 2 else 1),
        optimizer=0 if optimizer_offloaded else optimizer,
        activations=activations,
        forward=layer + logits,
        head=0.0 if scalar else logits + _head_gradients(shape, dtype) * (trainer.lora is None),
        gathered=_gathered(parameters, shape, size, stage, ranks),
        parameters=parameters,
    )
    copied = trained * MASTER_AND_MOMENTS_BYTES / ranks
    return _on_device(memory, trainer, offloaded=optimizer if optimizer_offloaded else 0, copied=copied)


def forward_memory(
    shape: ModelShape, dtype: Dtype, tokens: int, scalar: bool, role: PlacementConfig, sharded: bool = False
) -> WorkerMemory:
    """Estimate the memory of one worker of a model that only computes forward passes; its weights may be sharded."""
    parameters = shape.parameters - (shape.output_head if scalar else 0)
    size = DTYPE_BYTES[dtype]
    logits = 0.0 if scalar else _logit_bytes(shape, tokens, bool(role.gpus_per_worker))
    layer = ACTIVATION_BYTES * size / 2 * tokens * shape.hidden
    memory = WorkerMemory(
        weights=parameters * size / (role.workers if sharded else 1),
        activations=layer,
        forward=layer + logits,
        head=logits,
        gathered=_gathered(parameters, shape, size, 3, role.workers) if sharded else 0.0,
        parameters=parameters,
    )
    return _on_device(memory, role)


def sending(memory: WorkerMemory, shape: ModelShape, rollout: RolloutConfig, dtype: Dtype) -> WorkerMemory:
    """Add the buffers of a policy that sends its weights: a bucket as it was gathered, cut out, and packed."""
    return replace(memory, transfer=3.0 * _bucket(shape, rollout, dtype))


def engine_memory(
    shape: ModelShape, dtype: Dtype, rollout: RolloutConfig, gpu_bytes: float, neighbours: int = 0
) -> WorkerMemory:
    """Estimate the memory of one vLLM engine, per device: weights of its slice, and the cache that fills its share.

    On CPU all its tensor-parallel workers are on one device, each with a cache of the size that is asked for.

    Args:
        shape: of the model.
        dtype: of the model.
        rollout: the engines' section.
        gpu_bytes: of a GPU.
        neighbours: processes of other roles on its GPU, which take turns with it.
    """
    parallel, on_gpu = tensor_parallel_size(rollout), bool(rollout.gpus_per_worker)
    size = DTYPE_BYTES[dtype]
    weights = shape.parameters * size / parallel
    activations = ACTIVATION_BYTES * size / 2 * ENGINE_TOKENS * shape.hidden / parallel if on_gpu else 0.0
    own = rollout.engine
    if "kv_cache_memory_bytes" in own or not on_gpu:
        cache = float(own.get("kv_cache_memory_bytes", CPU_CACHE_BYTES))
    else:
        cache = max(0.0, gpu_share(rollout, neighbours, gpu_bytes) * gpu_bytes - weights - activations)
    token = 2 * shape.layers * shape.kv_width * size / parallel
    here = 1 if on_gpu else parallel
    memory = WorkerMemory(
        weights=weights * here,
        activations=activations,
        cache=cache * here,
        cached_tokens=cache / token,
        # A copy of the bucket, and a layer that is put together from it.
        transfer=2.0 * _bucket(shape, rollout, dtype) if on_gpu else 0.0,
        parameters=shape.parameters,
    )
    # What lies between its pieces is in its share.
    return replace(_on_device(memory, rollout), fragmentation=0.0, asleep=PINNED_ROUNDING * weights)


def _on_device(memory: WorkerMemory, role: PlacementConfig, offloaded: float = 0, copied: float = 0) -> WorkerMemory:
    """Add what a device has of any process.

    Args:
        memory: of what the worker computes.
        role: its placement.
        offloaded: bytes that lie in host memory in any case.
        copied: bytes in host memory from which a checkpoint is written.
    """
    if not role.gpus_per_worker:
        return replace(memory, optimizer=memory.optimizer + offloaded, process=worker_process(role), copied=copied)
    peers = role.workers > 1 or role.gpus_per_worker > 1
    return replace(
        memory,
        process=CUDA_CONTEXT_BYTES + COMMUNICATOR * peers,
        fragmentation=FRAGMENTATION,
        asleep=memory.state,
        beside=worker_process(role) + CUDA_HOST + offloaded,
        copied=copied,
    )


def _logit_bytes(shape: ModelShape, tokens: int, on_gpu: bool) -> float:
    """Estimate the chunks of logits that the head holds, of all tokens where these are few."""
    rows = 4.0 * tokens * shape.vocabulary / shape.hidden
    return LOGIT_CHUNKS * min(CHUNK_BYTES_GPU if on_gpu else CHUNK_BYTES_CPU, rows)


def _head_gradients(shape: ModelShape, dtype: Dtype) -> float:
    """Estimate the gradients of the head's weight: the sum of chunks in float32, one chunk's, and the sum's cast."""
    return shape.vocabulary * (4.0 if dtype == "float32" else 8.0)


def _gathered(parameters: float, shape: ModelShape, size: int, stage: int, ranks: int) -> float:
    buckets = 2.0 * size * min(COLLECTIVE_BUCKET, parameters) if stage >= 1 and ranks > 1 else 0.0
    live = min(parameters, max(LIVE_PARAMETERS, shape.largest)) * size if stage == 3 and ranks > 1 else 0.0
    return live + buckets


def _bucket(shape: ModelShape, rollout: RolloutConfig, dtype: Dtype) -> float:
    """Return the bytes of the largest bucket that travels; a larger tensor travels alone."""
    whole = shape.parameters * DTYPE_BYTES[dtype]
    return max(min(rollout.bucket_megabytes * MIB, whole), shape.largest * DTYPE_BYTES[dtype])


MIB = 2.0**20

TRAINER = 320 * MIB
"""A rank of a trained or frozen model: torch, transformers, DeepSpeed."""

ENGINE = 885 * MIB
"""The actor of an engine and vLLM's own process, each with torch and vLLM."""

ENGINE_WORKER = 425 * MIB
"""Each of several tensor-parallel workers, a process of vLLM's."""

MODEL_SCORER = 300 * MIB
"""The actor of a reward model: torch and transformers."""

SCORER = 65 * MIB
"""The actor of a reward function or a service."""

FUNCTION = 12 * MIB
"""The process of a reward function, without what its file imports."""

DRIVER = 430 * MIB
"""The command itself, with torch for the arithmetic of a batch."""

RAY = 425 * MIB
"""Ray's own processes of a machine, and idle workers; what lies in its object store is not in it."""


MASTER_AND_MOMENTS_BYTES = 12
"""Of a trained parameter in a checkpoint: float32 weight and AdamW's two moments."""

CUDA_HOST = 1024 * MIB
"""CUDA's own part of a process on a GPU, in host memory; not measured here."""


def worker_process(role: PlacementConfig) -> float:
    """Return the bytes of host memory of one worker of a role, beside its model."""
    match role:
        case RolloutConfig():
            workers = tensor_parallel_size(role)
            return ENGINE + (workers * ENGINE_WORKER if workers > 1 else 0)
        case RewardSource():
            return (MODEL_SCORER if role.is_network else SCORER) + (FUNCTION if role.has_process else 0)
    return TRAINER


OTHER_PROCESSES: Mapping[str, float] = {"driver": DRIVER, "Ray": RAY}
"""What runs beside the roles, on the first machine."""

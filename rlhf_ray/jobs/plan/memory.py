"""WorkerMemory that the roles of a job need, estimated from parameter counts; nothing is loaded.

Weights, gradients and optimizer state follow ZeRO (Rajbhandari et al. 2020); activations are 34 bytes a token, hidden
unit and layer in 16 bits, or the layers' inputs and one layer's activations where they are recomputed (Korthikanti et
al. 2022). What processes hold before they hold a model is measured, see `processes`. Buffers, fragmentation and the
CUDA context come on top.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.lora import ALL_LINEAR, LoraConfig
from rlhf_ray.config.model import Dtype
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.rewards import RewardSource
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.rollout.engine_arguments import CPU_CACHE_BYTES, GPU_SHARE, tensor_parallel_size

DTYPE_BYTES: Mapping[Dtype, int] = {"float32": 4, "bfloat16": 2}
QUANTIZED_BYTES = 0.53
"""Per frozen parameter in 4 bits, with its share of the doubly quantized scales (Dettmers et al. 2023)."""
ACTIVATION_BYTES = 34
"""Per token, hidden unit and layer, in 16 bits and with an attention kernel that keeps no score matrix."""


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
    """Bytes of one worker."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    activations: float = 0
    cache: float = 0
    cached_tokens: float = 0
    """Tokens of which the cache holds keys and values."""
    process: float = 0
    """Python and what it imports; on CPU, where it takes of the same memory."""

    @property
    def total(self) -> float:
        """All parts together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.cache + self.process


def trainer_memory(shape: ModelShape, trainer: TrainerConfig, dtype: Dtype, tokens: int, scalar: bool) -> WorkerMemory:
    """Estimate one rank of a trained model.

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
    return WorkerMemory(
        weights=weights / (ranks if stage == 3 else 1),
        gradients=trained * gradient_bytes / (ranks if stage >= 2 else 1),
        optimizer=0 if optimizer_offloaded else trained * optimizer_bytes / (ranks if stage >= 1 else 1),
        activations=activations,
    )


def forward_memory(shape: ModelShape, dtype: Dtype, tokens: int, scalar: bool, shards: int = 1) -> WorkerMemory:
    """Estimate a worker that only computes forward passes, layer by layer; its weights may be sharded."""
    parameters = shape.parameters - (shape.output_head if scalar else 0)
    size = DTYPE_BYTES[dtype]
    return WorkerMemory(
        weights=parameters * size / shards, activations=ACTIVATION_BYTES * size / 2 * tokens * shape.hidden
    )


def engine_memory(shape: ModelShape, dtype: Dtype, rollout: RolloutConfig, gpu_bytes: float) -> WorkerMemory:
    """Estimate one vLLM engine, per device: weights of its slice, and the cache in the rest of its share.

    On CPU all its tensor-parallel workers are on one device, each with a cache of the size that is asked for.
    """
    parallel = tensor_parallel_size(rollout)
    weights = shape.parameters * DTYPE_BYTES[dtype] / parallel
    own = rollout.engine
    if "kv_cache_memory_bytes" in own or not rollout.gpus_per_worker:
        cache = float(own.get("kv_cache_memory_bytes", CPU_CACHE_BYTES))
    else:
        share = float(own.get("gpu_memory_utilization", GPU_SHARE * min(1.0, rollout.gpus_per_worker)))
        cache = max(0.0, share * gpu_bytes - weights)
    token = 2 * shape.layers * shape.kv_width * DTYPE_BYTES[dtype] / parallel
    here = 1 if rollout.gpus_per_worker else parallel
    return WorkerMemory(weights=weights * here, cache=cache * here, cached_tokens=cache / token)


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


def worker_process(role: PlacementConfig) -> float:
    """Return the bytes of one worker of a role, beside its model; none on a GPU, whose memory it does not take."""
    if role.gpus_per_worker:
        return 0.0
    match role:
        case RolloutConfig():
            workers = tensor_parallel_size(role)
            return ENGINE + (workers * ENGINE_WORKER if workers > 1 else 0)
        case RewardSource():
            return (MODEL_SCORER if role.is_network else SCORER) + (FUNCTION if role.has_process else 0)
    return TRAINER


def other_processes(config: JobConfig) -> Mapping[str, float]:
    """Return the bytes of what runs beside the roles, where all of them compute on CPU."""
    on_gpu = any(role.gpus_per_worker for role in config.placements().values())
    return {} if on_gpu else {"driver": DRIVER, "Ray": RAY}

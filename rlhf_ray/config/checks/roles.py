"""Checks of where roles run and with what: groups, ranks of trained models and their adapters, engines."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rlhf_ray.config.checks.deepspeed import deepspeed_problems
from rlhf_ray.config.errors import perhaps
from rlhf_ray.config.lora import ENGINE_RANKS
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.passthrough import (
    OWNED_ENGINE_ARGUMENTS,
    REFUSED_SAMPLING,
    UNSUPPORTED_ENGINE_ARGUMENTS,
    engine_argument_names,
    holds_secret,
)
from rlhf_ray.config.placement import GroupConfig, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import ReferenceConfig, TrainerConfig

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.ppo import PPOConfig

Placements = Mapping[KeyPath, PlacementConfig]


def group_problems(placements: Placements, groups: Mapping[str, GroupConfig]) -> Iterator[Problem]:
    """Find roles whose group is not there, or has no room for them."""
    for key, role in placements.items():
        group = groups.get(role.on)
        if group is None:
            named = perhaps(role.on, groups) or f"; groups has {', '.join(groups) or 'none'}"
            yield Problem((*key, "on"), f"no group is named {role.on!r}{named}")
            continue
        yield from _fits_node(key, role, "gpus", role.gpus_per_worker, group.gpus_per_node, group.nodes)
        yield from _fits_node(key, role, "cpus", role.cpus_per_worker, group.cpus_per_node, group.nodes)


def _fits_node(
    key: KeyPath, role: PlacementConfig, device: str, wanted: float, available: float, nodes: int
) -> Iterator[Problem]:
    if wanted > available:
        yield Problem(
            (*key, f"{device}_per_worker"),
            f"{wanted:g} is more than groups.{role.on}.{device}_per_node, which is {available:g}",
        )
    elif wanted * role.workers > available * nodes + 1e-9:
        yield Problem(
            (*key, "workers"),
            f"{role.workers} workers of {wanted:g} {device.upper()} need {wanted * role.workers:g}, "
            f"but group {role.on} has {available * nodes:g} ({nodes} x {available:g})",
        )


def trainer_problems(placements: Placements) -> Iterator[Problem]:
    """Find ranks of trained models that DeepSpeed cannot run."""
    for key, role in placements.items():
        if not isinstance(role, TrainerConfig):
            continue
        if role.gpus_per_worker > 1:
            yield Problem((*key, "gpus_per_worker"), "a rank of a trained model uses one GPU; raise `workers` instead")
        for problem in deepspeed_problems(role.deepspeed):
            yield Problem((*key, "deepspeed", *problem.key), problem.message)


def adapter_problems(placements: Placements) -> Iterator[Problem]:
    """Find what is wrong with the adapters of trained roles."""
    for key, role in placements.items():
        if isinstance(role, TrainerConfig) and role.lora is not None:
            yield from _adapter((*key, "lora"), role)


def _adapter(key: KeyPath, role: TrainerConfig) -> Iterator[Problem]:
    lora = role.lora
    assert lora is not None
    if not lora.target_modules:
        yield Problem((*key, "target_modules"), "names no layer; leave it out for all linear layers")
    if lora.load_in_4bit and role.zero_stage == 3:
        yield Problem((*key, "load_in_4bit"), "DeepSpeed cannot shard weights of 4 bits; set zero_stage to 2 or less")
    if lora.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        yield Problem((*key, "load_in_4bit"), "needs bitsandbytes, which is not installed; pip install bitsandbytes")


def attention_problems(model: ModelConfig, placements: Placements) -> Iterator[Problem]:
    """Find an attention kernel that the trained roles have no devices for."""
    trained = [role for role in placements.values() if isinstance(role, TrainerConfig)]
    if model.attention == "flash_attention_2" and any(role.gpus_per_worker == 0 for role in trained):
        yield Problem(("model", "attention"), "flash_attention_2 needs GPUs, but a trained role has gpus_per_worker 0")


def engine_problems(placements: Placements, training: bool) -> Iterator[Problem]:
    """Find what vLLM would refuse, and what `training` on its samples forbids."""
    for key, rollout in placements.items():
        if isinstance(rollout, RolloutConfig):
            yield from _engine(key, rollout, training)


def _engine(key: KeyPath, rollout: RolloutConfig, training: bool) -> Iterator[Problem]:
    if rollout.gpus_per_worker > 1 and rollout.gpus_per_worker % 1:
        yield Problem(
            (*key, "gpus_per_worker"), f"is the tensor-parallel size, a whole number, not {rollout.gpus_per_worker}"
        )
    if rollout.tensor_parallel and rollout.gpus_per_worker:
        yield Problem((*key, "tensor_parallel"), "is for CPU engines; on GPU gpus_per_worker says the size")
    if rollout.gpus_per_worker == 0 and rollout.transport in {"nccl", "ipc"}:
        yield Problem(
            (*key, "transport"),
            f"{rollout.transport} needs GPU engines; CPU engines take gloo",
        )
    for name, value in rollout.engine.items():
        yield from (Problem((*key, "engine", name), text) for text in _engine_argument(name, value, training))


def recording_problems(key: KeyPath, rollout: RolloutConfig, instead: str) -> Iterator[Problem]:
    """Find a recording, or its replay, where nothing is trained; `instead` says where answers are kept."""
    for name, value in (("record", rollout.record), ("replay", rollout.replay)):
        if value is not None:
            yield Problem((*key, name), f"is for training; {instead}")


def transport_problems(policy: TrainerConfig, rollout: RolloutConfig) -> Iterator[Problem]:
    """Find a way for weights that cannot lead from the policy to the engines."""
    key = ("rollout", "transport")
    if rollout.transport != "gloo" and rollout.gpus_per_worker and not policy.gpus_per_worker:
        yield Problem(key, "engines on GPUs need the policy on GPUs too, but policy.gpus_per_worker is 0")
    if rollout.transport == "ipc" and policy.on != rollout.on:
        yield Problem(key, f"ipc needs policy and engines on one group, not {policy.on} and {rollout.on}")
    if rollout.transport == "gloo" and rollout.gpus_per_worker:
        yield Problem(key, "gloo moves weights to CPU engines; engines on GPUs take nccl or ipc")


def policy_adapter_problems(config: "PPOConfig") -> Iterator[Problem]:
    """Find what is wrong between the adapter of a policy, its reference and its engines."""
    lora, reload = config.policy.lora, config.rollout.adapter == "reload"
    if lora is None:
        if reload:
            yield Problem(("rollout", "adapter"), "reload needs an adapter: set policy.lora, or leave this out")
        return
    if lora.lora_dropout:
        yield Problem(
            ("policy", "lora", "lora_dropout"),
            "not in policy-gradient training: the engines sample without dropout, and the ratio of new to old policy "
            "would not begin at 1",
        )
    if config.reference != ReferenceConfig():
        yield Problem(
            ("reference",), "is the policy with its adapter switched off (policy.lora); leave this section out"
        )
    if reload and lora.r > ENGINE_RANKS[-1]:
        yield Problem(
            ("policy", "lora", "r"),
            f"engines take adapters of rank {ENGINE_RANKS[-1]} at most; lower it, or set rollout.adapter to merged",
        )
    if reload and lora.load_in_4bit:
        yield Problem(
            ("rollout", "adapter"),
            "reload would put the adapter on the engines' own weights, but it is trained on those of load_in_4bit; set "
            "merged, which sends them",
        )


def _engine_argument(name: str, value: Any, training: bool) -> Iterator[str]:
    known = engine_argument_names()
    if training and name in REFUSED_SAMPLING:
        yield REFUSED_SAMPLING[name]
    elif name in OWNED_ENGINE_ARGUMENTS:
        yield f"is set by {OWNED_ENGINE_ARGUMENTS[name]}"
    elif name in UNSUPPORTED_ENGINE_ARGUMENTS:
        yield f"is not supported: {UNSUPPORTED_ENGINE_ARGUMENTS[name]}"
    elif holds_secret(name):
        yield "credentials come from the environment, never from a config, which is copied into the run folder"
    elif known and name not in known:
        yield f"not an argument of vLLM's AsyncEngineArgs{perhaps(name, known)}"
    elif name == "gpu_memory_utilization" and not (type(value) in {int, float} and 0 < value <= 1):
        yield f"is a part of the GPU, above 0 and at most 1, not {value!r}"
    elif name == "kv_cache_memory_bytes" and not (type(value) is int and value > 0):
        yield f"is a whole number of bytes, not {value!r}"

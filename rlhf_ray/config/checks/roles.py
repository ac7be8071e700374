"""Checks of where roles run and with what: groups, ranks of trained models, engines."""

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf_ray.config.checks.deepspeed import deepspeed_problems
from rlhf_ray.config.errors import perhaps
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.passthrough import (
    OWNED_ENGINE_ARGUMENTS,
    REFUSED_SAMPLING,
    engine_argument_names,
    holds_secret,
)
from rlhf_ray.config.placement import GroupConfig, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import TrainerConfig

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


def _engine_argument(name: str, value: Any, training: bool) -> Iterator[str]:
    known = engine_argument_names()
    if training and name in REFUSED_SAMPLING:
        yield REFUSED_SAMPLING[name]
    elif name in OWNED_ENGINE_ARGUMENTS:
        yield f"is set by {OWNED_ENGINE_ARGUMENTS[name]}"
    elif holds_secret(name):
        yield "credentials come from the environment, never from a config, which is copied into the run folder"
    elif known and name not in known:
        yield f"not an argument of vLLM's AsyncEngineArgs{perhaps(name, known)}"
    elif name == "gpu_memory_utilization" and not (type(value) in {int, float} and 0 < value <= 1):
        yield f"is a part of the GPU, above 0 and at most 1, not {value!r}"
    elif name == "kv_cache_memory_bytes" and not (type(value) is int and value > 0):
        yield f"is a whole number of bytes, not {value!r}"

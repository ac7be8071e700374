"""Checks of low-rank adapters across fields."""

import importlib.util
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rlhf_ray.config.lora import ENGINE_RANKS
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.training import ReferenceConfig, TrainerConfig

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.ppo import PPOConfig


def adapter_problems(placements: Mapping[KeyPath, PlacementConfig]) -> Iterator[Problem]:
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

"""Which roles hold their devices together: in each phase of a PPO step, and in each part of the other jobs."""

from collections.abc import Mapping
from typing import NamedTuple

from rlhf_ray.cluster.placement import Layout, lay_out
from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.parts import groups_of, placements_of
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.inference import GenerateConfig, ScoreConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import SupervisedConfig
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.schedule import GENERATE, SCORE, SYNC, TRAIN

Phases = Mapping[str, tuple[str, ...]]
"""Sections of the config whose roles are awake, by phase."""

LOGPROBS = "log-probabilities"

EVALUATE_PARTS: Phases = {GENERATE: ("rollout",), SCORE: ("rewards", "oracle"), LOGPROBS: ("measure",)}
"""Each starts its roles where there is nobody else, and ends them."""


class Part(NamedTuple):
    """Roles that are there at the same time."""

    phases: Phases
    """When each is awake."""
    layout: Layout
    """Where each is."""


def ppo_phases(config: PPOConfig) -> Phases:
    """Phases of a step of PPO, of roles that share devices; those that share none are always awake."""
    return {
        GENERATE: ("rollout",),
        SCORE: (*(["policy"] if policy_infers(config) else []), "critics", "reference", "rewards"),
        TRAIN: ("policy", "critics"),
        SYNC: ("policy", "rollout"),
    }


def policy_infers(config: PPOConfig) -> bool:
    """Whether the policy reads a batch before it learns: for its own log-probabilities, or as its own reference."""
    return config.algorithm.old_logprobs == "trainer" or adapter_off_is_reference(config)


def compares(config: PPOConfig) -> bool:
    """Whether the policy is compared with the model that it began from."""
    return config.algorithm.kl.coefficient > 0 or config.algorithm.kl.target is not None


def adapter_off_is_reference(config: PPOConfig) -> bool:
    """Whether the policy with its adapter switched off is what it is compared with."""
    return compares(config) and config.policy.lora is not None


def parts_of(config: Section) -> list[Part]:
    """Return what a job places together; nearly all jobs are of one part.

    Raises:
        DoesNotFit: the roles of one of them do not fit their groups.
    """
    roles = {".".join(map(str, key)): placement for key, placement in placements_of(config).items()}
    if not isinstance(config, EvaluateConfig):
        return [Part(_phases(config), lay_out(groups_of(config), roles))]
    parts = []
    for phase, sections in EVALUATE_PARTS.items():
        own: dict[str, PlacementConfig] = {
            role: placement for role, placement in roles.items() if role.partition(".")[0] in sections
        }
        if own:
            parts.append(Part({phase: sections}, lay_out(config.groups, own)))
    return parts


def _phases(config: Section) -> Phases:
    """Phases of a job; none where it has no roles."""
    if isinstance(config, PPOConfig):
        return ppo_phases(config)
    if isinstance(config, GenerateConfig):
        return {GENERATE: ("rollout", "safety")}
    if isinstance(config, ScoreConfig):
        return {SCORE: ("rewards",)}
    return {TRAIN: ("trainer",)} if isinstance(config, SupervisedConfig) else {}

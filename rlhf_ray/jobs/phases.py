"""Which roles hold their devices together: in each phase of a PPO step, and in each part of the other jobs."""

from collections.abc import Mapping

from rlhf_ray.config.base import Section
from rlhf_ray.config.evaluate import EvaluateConfig
from rlhf_ray.config.inference import GenerateConfig, ScoreConfig
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.supervised import SupervisedConfig
from rlhf_ray.schedule import GENERATE, SCORE, SYNC, TRAIN

Phases = Mapping[str, tuple[str, ...]]
"""Sections of the config whose roles are awake, by phase."""

PPO_PHASES: Phases = {
    GENERATE: ("rollout",),
    SCORE: ("policy", "critics", "reference", "rewards"),
    TRAIN: ("policy", "critics"),
    SYNC: ("policy", "rollout"),
}
"""Of roles that share devices; those that share none are always awake."""

EVALUATE_PHASES: Phases = {
    GENERATE: ("rollout",),
    SCORE: ("rewards", "oracle"),
    "log-probabilities": ("measure",),
}
"""Each part starts its roles, and ends them."""


def phases_of(config: Section) -> Phases:
    """Phases of a job; none where it has no roles."""
    if isinstance(config, PPOConfig):
        return PPO_PHASES
    if isinstance(config, EvaluateConfig):
        return EVALUATE_PHASES
    if isinstance(config, GenerateConfig):
        return {GENERATE: ("rollout", "safety")}
    if isinstance(config, ScoreConfig):
        return {SCORE: ("rewards",)}
    return {TRAIN: ("trainer",)} if isinstance(config, SupervisedConfig) else {}

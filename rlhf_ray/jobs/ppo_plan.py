"""The roles of a PPO run by the names that they have in it: where each goes, and who works in which phase."""

from collections.abc import Collection

from rlhf_ray.cluster.placement import lay_out
from rlhf_ray.config.documents import KeyPath
from rlhf_ray.config.parts import placements_of
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.ppo import COST_CRITIC, PPOConfig
from rlhf_ray.jobs.constraint import COST_CRITIC_ROLE
from rlhf_ray.jobs.phases import PPO_PHASES


def critic_role(name: str) -> str:
    """Role of a critic, by its name in the config."""
    return COST_CRITIC_ROLE if name == COST_CRITIC else "critic"


def uses(critics: Collection[str]) -> dict[str, list[str]]:
    """Roles that each phase needs.

    Args:
        critics: roles of the critics.
    """
    return {
        phase: [role for section in sections for role in (critics if section == "critics" else [section])]
        for phase, sections in PPO_PHASES.items()
    }


def role_placements(config: PPOConfig) -> dict[str, PlacementConfig]:
    """Where the roles go, by the names that they have in the run, in the order in which they are placed."""
    return {_role(config, key): placement for key, placement in placements_of(config).items()}


def turn_takers(config: PPOConfig) -> set[str]:
    """Roles that share devices and must take turns on them, known before any of them is placed; rewards count as one.

    Raises:
        DoesNotFit: the roles do not fit their groups.
    """
    layout = lay_out(config.groups, role_placements(config))
    return {role.partition(".")[0] for role in layout.slots if layout.sharing(role)}


def _role(config: PPOConfig, key: KeyPath) -> str:
    match key:
        case ("critics", str(name)):
            return critic_role(name)
        case ("rewards", int(index)):
            return f"rewards.{config.rewards[index].name}"
    return str(key[0])

"""The roles of a PPO run by the names that they have in it: where each goes, and who works in which phase."""

from collections import Counter

from rlhf_ray.cluster.environment import CPU_THREADS
from rlhf_ray.cluster.placement import lay_out
from rlhf_ray.config.documents import KeyPath
from rlhf_ray.config.parts import placements_of
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.ppo import COST_CRITIC, PPOConfig
from rlhf_ray.config.rewards import FunctionReward, HTTPReward
from rlhf_ray.jobs.constraint import COST_CRITIC_ROLE
from rlhf_ray.jobs.phases import ppo_phases
from rlhf_ray.schedule import SCORE, TRAIN
from rlhf_ray.training.threads import Crowd


def critic_role(name: str) -> str:
    """Role of a critic, by its name in the config."""
    return COST_CRITIC_ROLE if name == COST_CRITIC else "critic"


def uses(config: PPOConfig) -> dict[str, list[str]]:
    """Roles that each phase needs."""
    critics = [critic_role(name) for name in config.critics]
    return {
        phase: [role for section in sections for role in (critics if section == "critics" else [section])]
        for phase, sections in ppo_phases(config).items()
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


def crowd_of(role: str, config: PPOConfig) -> Crowd:
    """Compute threads that the networks on a role's machines ask for, where it and they are on CPU.

    Raises:
        DoesNotFit: the roles do not fit their groups.
    """
    return Crowd(inferring=_threads_beside(role, SCORE, config), training=_threads_beside(role, TRAIN, config))


def _threads_beside(role: str, phase: str, config: PPOConfig) -> int:
    """Threads of all networks that compute in a phase on the fullest of a role's machines; 0 where it rests."""
    placements = role_placements(config)
    awake = uses(config)[phase]
    if role not in placements or role not in awake:
        return 0
    slots = lay_out(config.groups, placements).slots
    asked: Counter[tuple[str, int]] = Counter()
    for name, placement in placements.items():
        is_network = not isinstance(placement, FunctionReward | HTTPReward)
        if name.partition(".")[0] in awake and is_network and not placement.gpus_per_worker:
            for slot in slots[name]:
                asked[slot.group, slot.bundle] += placement.threads or CPU_THREADS
    return max(asked[slot.group, slot.bundle] for slot in slots[role])


def _role(config: PPOConfig, key: KeyPath) -> str:
    match key:
        case ("critics", str(name)):
            return critic_role(name)
        case ("rewards", int(index)):
            return f"rewards.{config.rewards[index].name}"
    return str(key[0])

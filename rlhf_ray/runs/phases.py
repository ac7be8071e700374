"""What a job places together, and which roles hold their devices at the same time."""

from typing import NamedTuple

from rlhf_ray.cluster.placement import Layout, lay_out
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.phases import Phases
from rlhf_ray.config.placement import PlacementConfig


class Part(NamedTuple):
    """Roles that are there at the same time."""

    phases: Phases
    """When each is awake."""
    layout: Layout
    """Where each is."""


def parts_of(config: JobConfig) -> list[Part]:
    """Lay out what a job places together; nearly all jobs are of one part.

    Raises:
        DoesNotFit: the roles of one of them do not fit their groups.
    """
    groups = config.node_groups()
    roles = {".".join(map(str, key)): placement for key, placement in config.placements().items()}
    if not config.phases_apart:
        return [Part(config.phases(), lay_out(groups, roles))]
    parts = []
    for phase, sections in config.phases().items():
        own: dict[str, PlacementConfig] = {
            role: placement for role, placement in roles.items() if role.partition(".")[0] in sections
        }
        if own:
            parts.append(Part({phase: sections}, lay_out(groups, own)))
    return parts

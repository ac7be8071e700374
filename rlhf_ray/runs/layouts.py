"""Where the roles of a job go, known before anything starts: for its start, and for `rlhf plan`."""

from typing import NamedTuple

from rlhf_ray.cluster.errors import DoesNotFit
from rlhf_ray.cluster.placement import Layout, lay_out
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.placement import Phases, PlacementConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.rollout.engine_arguments import choose_transport


class JobLayout(NamedTuple):
    """Roles that are there at the same time."""

    phases: Phases
    """When each is awake."""
    layout: Layout
    """Where each is."""
    in_turns: bool = False
    """Whether roles that share devices work one after another in SCORE and TRAIN."""


def job_layouts(config: JobConfig) -> list[JobLayout]:
    """Lay out what a job places together; nearly all jobs are of one part.

    Raises:
        DoesNotFit: the roles of one of them do not fit their groups.
    """
    groups = config.node_groups()
    roles = {".".join(map(str, key)): placement for key, placement in config.placements().items()}
    if not config.phases_apart:
        return [JobLayout(config.phases(), lay_out(groups, roles), config.learns_from_samples)]
    parts = []
    for phase, sections in config.phases().items():
        own: dict[str, PlacementConfig] = {
            role: placement for role, placement in roles.items() if role.partition(".")[0] in sections
        }
        if own:
            parts.append(JobLayout({phase: sections}, lay_out(groups, own)))
    return parts


def checked_layouts(config: JobConfig) -> list[JobLayout]:
    """Place all roles of a job, those that are there at the same time together.

    Raises:
        BadInput: they do not fit their groups, or weights cannot reach the engines where they are.
    """
    try:
        parts = job_layouts(config)
    except DoesNotFit as error:
        raise BadInput(str(error)) from None
    rollout = config.placements().get(("rollout",))
    if config.learns_from_samples and isinstance(rollout, RolloutConfig):
        overlap = parts[0].layout.overlap("rollout", "policy")
        if choose_transport(rollout, overlap) == "ipc" and overlap == "none":
            raise BadInput(
                "rollout.transport: ipc is for engines on the policy's GPUs, and these are on others; use auto, which "
                "is nccl here"
            )
    return parts

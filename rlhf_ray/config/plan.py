"""`rlhf plan`: what to plan, and what to assume of machines that are not at hand."""

from pydantic import Field

from rlhf_ray.config.base import Section


class PlanConfig(Section):
    """Show placement, memory of each device and the batch arithmetic of a config; starts nothing."""

    job: list[str] = Field(min_length=1)
    """The job's own command line: its verb, which may be left out where the file tells, its config file, overrides."""

    gpu_gib: float = Field(default=80, ge=0.001, le=1_000_000)
    """Memory of each GPU, in GiB."""

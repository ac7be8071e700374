"""What jobs that train have: run folder, seed, checkpoints, trackers."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.numbers import NonNegativeInt, PositiveInt, Seed
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import ClusterConfig, GroupConfig


class CheckpointConfig(Section):
    """When to save, and how many to keep."""

    every_steps: NonNegativeInt = 50
    """Steps between checkpoints; 0 saves only at the end and when asked to stop."""

    keep: PositiveInt = 2
    """Newest checkpoints that stay."""

    in_background: bool = True
    """Write files while training goes on, from copies in host memory: 12 bytes for each trained parameter. false: one
    role after the other, and training waits, where host memory holds no copies of all roles at once."""


class TrackingConfig(Section):
    """Places where metrics go besides the run folder."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online when WANDB_API_KEY is set, else offline."""

    project: str = "rlhf_ray"
    """Project name in wandb."""

    name: str | None = None
    """Run name. None: the run folder's."""

    tensorboard: bool = True
    """Also write TensorBoard event files into the run folder."""

    samples_per_step: int = Field(default=4, ge=0, le=10_000)
    """Samples shown and logged at each step."""


class RunConfig(JobConfig):
    """Fields of every job that trains."""

    output: PathText
    """Run folder, on storage that every node sees; running again with the same folder resumes."""

    seed: Seed = 0
    """Seeds data order, sampling, dropout and new heads."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Which Ray to use, and deadlines."""

    groups: dict[str, GroupConfig] = Field(default_factory=lambda: {"main": GroupConfig()})
    """Named groups of nodes; roles say which one they are on."""

    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    """Environment variables of the workers."""

    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    """Checkpoints."""

    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    """Metrics and samples."""

    def node_groups(self) -> Mapping[str, GroupConfig]:
        """Return `groups`."""
        return self.groups

    def worker_environment(self) -> EnvironmentConfig:
        """Return `environment`."""
        return self.environment

    def saves_in_turn(self) -> bool:
        """Tell whether one role after the other writes its part of a checkpoint."""
        return not self.checkpoint.in_background

    def output_folder(self) -> str | None:
        """Return the run folder."""
        return self.output

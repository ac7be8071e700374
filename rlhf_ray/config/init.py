"""`rlhf init`: a project to begin with."""

from rlhf_ray.config.base import Section
from rlhf_ray.config.paths import OnePath


class InitConfig(Section):
    """Write a small project that runs on two CPU cores: configs, data, a reward function and an untrained model."""

    folder: OnePath
    """Folder to make."""

    examples: bool = False
    """Write the examples and presets of the documentation instead: `examples/` and `configs/`, whose commands run there
    as they do in the repository."""

"""What every job's config answers about its job."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.addresses import hidden_credentials
from rlhf_ray.config.checks.roles import adapter_problems, engine_problems, group_problems, trainer_problems
from rlhf_ray.config.data import RowSource
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.lora import ALL_LINEAR
from rlhf_ray.config.model import HeldModel, ModelConfig
from rlhf_ray.config.placement import GroupConfig, Phases, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import RewardConfig, reward_problems
from rlhf_ray.config.training import TrainerConfig


class JobConfig(Section):
    """The base of every job's config: what a job is stands in its class, and whoever checks, plans, submits or starts
    jobs asks there. By default a job has nothing of each kind.

    Keys are those of the config file.
    """

    learns_from_samples: ClassVar[bool] = False
    """Whether a policy learns from what the engines write, and its weights travel to them."""
    phases_apart: ClassVar[bool] = False
    """Whether each phase starts its roles where there is nobody else, and ends them."""

    def node_groups(self) -> Mapping[str, GroupConfig]:
        """Return the groups of nodes, by name."""
        return {}

    def worker_environment(self) -> EnvironmentConfig:
        """Return the environment variables of the workers."""
        return EnvironmentConfig()

    def placements(self) -> dict[KeyPath, PlacementConfig]:
        """Return the roles in the order in which they are placed, on which it depends who shares a device with whom."""
        return dict(self.reward_sources())

    def phases(self) -> Phases:
        """Return which roles are awake in each phase; those that share no devices always are."""
        return {}

    def reward_sources(self) -> dict[KeyPath, RewardConfig]:
        """Return all reward sources, whatever they are for."""
        return {}

    def model_paths(self) -> dict[KeyPath, str]:
        """Return the model directories and hub names that the job loads; by default those of the reward sources."""
        sources = self.reward_sources().items()
        return {(*key, *own): path for key, source in sources for own, path in source.model_paths().items()}

    def trained_model(self) -> ModelConfig | None:
        """Return the model that learns; None where nothing does."""
        return None

    def held_models(self) -> dict[KeyPath, list[HeldModel]]:
        """Return by role what a worker holds, one of the list at a time; nothing where it holds no model."""
        return {key: source.held_models() for key, source in self.reward_sources().items()}

    def step_tokens(self) -> Mapping[str, int]:
        """Return by phase the tokens that a step reads or writes, where all texts are as long as they may be."""
        return {}

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the data sets that the job reads."""
        return {}

    def longest_sample(self) -> int | None:
        """Return the tokens of the longest prompt with the longest response; None where no engine answers."""
        return None

    def max_staleness(self) -> int | None:
        """Return how many steps ahead of the policy engines write; None where they may not, or there are none."""
        return None

    def saves_in_turn(self) -> bool:
        """Tell whether one role after the other writes its part of a checkpoint, so that one copies at a time."""
        return False

    def output_folder(self) -> str | None:
        """Return the folder that the job makes; None where it makes none."""
        return None

    def output_files(self) -> dict[KeyPath, str]:
        """Return the files that the job writes outside of a folder of its own."""
        return {}

    def results(self) -> str:
        """Return where the job leaves what it makes: its folder, else its file."""
        folder, files = self.output_folder(), self.output_files()
        return folder if folder is not None else next(iter(files.values()))

    def files_read(self) -> dict[str, str]:
        """Return the files that an output must not replace, by what names them."""
        return {".".join(map(str, (*key, "path"))): data.path for key, data in self.data_sets().items()}

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the fields. No file is looked at."""
        yield from hidden_credentials(self.model_dump(mode="json"))
        placements = self.placements()
        yield from group_problems(placements, self.node_groups())
        for problem in self.worker_environment().problems({str(key[0]) for key in placements}):
            yield Problem(("environment", *problem.key), problem.message)
        yield from trainer_problems(placements)
        yield from engine_problems(placements, self.learns_from_samples)
        yield from reward_problems(self.reward_sources())
        yield from adapter_problems(placements)

    def missing(self) -> Iterator[Problem]:
        """Find what this machine does not have, beside models, data sets and what reward sources name."""
        yield from ()

    def batch_lines(self) -> Iterator[str]:
        """Say what the batch words come to: samples, tokens and optimizer steps, one statement a line."""
        yield from ()

    def batch_warnings(self) -> Iterator[str]:
        """Name batch words that are allowed but look unintended."""
        yield from ()

    def adapter_lines(self) -> Iterator[str]:
        """Say which roles train an adapter, on what, and what follows from it."""
        for key, role in self.placements().items():
            if isinstance(role, TrainerConfig) and role.lora is not None:
                layers = ", ".join(role.lora.target_modules).replace(ALL_LINEAR, "all linear layers")
                yield f"{'.'.join(map(str, key))} trains an adapter of rank {role.lora.r} on {layers}."

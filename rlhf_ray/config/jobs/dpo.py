"""`rlhf dpo`: learning from preferences without a reward model, a critic or engines."""

from collections.abc import Iterator

from pydantic import Field

from rlhf_ray.config.checks.preferences import preference_problems
from rlhf_ray.config.data import DataConfig, RowSource
from rlhf_ray.config.jobs.supervised import SupervisedConfig, SupervisedTrainerConfig, rows_of
from rlhf_ray.config.numbers import LearningRate, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.preferences import PreferenceLossConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem


class PreferenceDataConfig(DataConfig):
    """Preferences in TRL's columns, text or messages.

    Pairs: `prompt`, `chosen`, `rejected`, where the prompt may stand in both answers instead. For `kto`,
    `apo_zero_unpaired` and `bco` also `prompt`, `completion`, `label`.
    """

    max_tokens: Tokens = 2048
    """Prompts with longer answers are cut at the end; prompts that fill all of it are left out."""

    def text_limit(self) -> int:
        """Return `max_tokens`."""
        return self.max_tokens


class DPOTrainerConfig(SupervisedTrainerConfig):
    """The trained policy."""

    learning_rate: LearningRate = 1e-6
    """Peak learning rate of AdamW."""


class DPOConfig(SupervisedConfig):
    """A policy from preferences: DPO (Rafailov et al. 2023) and its family, KTO, BCO."""

    data: PreferenceDataConfig
    """Preferences to learn from."""

    evaluation_data: PreferenceDataConfig | None = None
    """Preferences kept aside, for loss, accuracy and margin."""

    loss: PreferenceLossConfig = Field(default_factory=PreferenceLossConfig)
    """What is minimised."""

    trainer: DPOTrainerConfig = Field(default_factory=DPOTrainerConfig)
    """Optimizer and placement."""

    reference_cache: PathText | None = "~/.cache/rlhf_ray/reference_logprobs"
    """Folder or URL that keeps the reference's log-probabilities for later runs of the same data. None: no cache."""

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the rows to learn from, and those that are kept aside."""
        return rows_of(self.data, self.evaluation_data)

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        yield from preference_problems(self)

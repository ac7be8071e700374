"""`rlhf sft` and `rlhf reward`: jobs that learn from a fixed data set."""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.roles import attention_problems
from rlhf_ray.config.data import RankingDataConfig, RowSource, TextDataConfig
from rlhf_ray.config.model import HeldModel, ModelConfig
from rlhf_ray.config.numbers import LearningRate, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Tokens
from rlhf_ray.config.placement import TRAIN, Phases, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import TrainerConfig


class SupervisedTrainerConfig(TrainerConfig):
    """The trained model of a supervised job."""

    learning_rate: LearningRate = 1e-5
    """Peak learning rate of AdamW."""


class SupervisedConfig(RunConfig):
    """Settings that supervised jobs share."""

    learns_scalar: ClassVar[bool] = False
    """Whether the model that is learned has a scalar head, as reward models do."""

    model: ModelConfig
    """The model to start from."""

    epochs: float = Field(default=1, ge=1e-6, le=1_000_000)
    """Passes over the data; may be a fraction."""

    batch_size: PositiveInt = 64
    """Rows of one optimizer step, over all ranks."""

    tokens_per_microbatch: Tokens = 8192
    """Tokens, padding counted, of one forward and backward pass on one rank."""

    trainer: SupervisedTrainerConfig = Field(default_factory=SupervisedTrainerConfig)
    """Optimizer and placement."""

    evaluate_every_steps: NonNegativeInt = 50
    """Steps between evaluations on the held-out rows; 0 evaluates only at the end."""

    def placements(self) -> dict[KeyPath, PlacementConfig]:
        """Return the trainer."""
        return {("trainer",): self.trainer}

    def phases(self) -> Phases:
        """Return the one phase."""
        return {TRAIN: ("trainer",)}

    def model_paths(self) -> dict[KeyPath, str]:
        """Return those of `model`."""
        return {("model", *key): path for key, path in self.model.paths().items()}

    def trained_model(self) -> ModelConfig:
        """Return `model`."""
        return self.model

    def held_models(self) -> dict[KeyPath, list[HeldModel]]:
        """Return the trainer's."""
        return {("trainer",): [HeldModel(self.model, self.tokens_per_microbatch, self.learns_scalar)]}

    def step_tokens(self) -> Mapping[str, int]:
        """Return the tokens of an optimizer step."""
        longest = max((data.text_limit() or 0 for data in self.data_sets().values()), default=0)
        return {TRAIN: self.batch_size * longest}

    def batch_lines(self) -> Iterator[str]:
        """Say what an optimizer step comes to."""
        rows = self.batch_size / self.trainer.workers
        yield (
            f"Each optimizer step: {self.batch_size} rows, {rows:g} for each of {self.trainer.workers} ranks, "
            f"in micro-batches of at most {self.tokens_per_microbatch} tokens."
        )
        yield f"{self.epochs:g} passes over the data."

    def batch_warnings(self) -> Iterator[str]:
        """Name rows that do not divide evenly."""
        if self.batch_size % self.trainer.workers:
            yield f"batch_size: {self.batch_size} rows do not divide evenly by {self.trainer.workers} ranks"

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        yield from attention_problems(self.model, self.placements())
        if self.batch_size < self.trainer.workers:
            text = f"{self.batch_size} rows do not reach {self.trainer.workers} ranks"
            yield Problem(("batch_size",), text)


def rows_of(data: RowSource, held_out: RowSource | None) -> dict[KeyPath, RowSource]:
    """Return the data sets of a supervised job by key: rows to learn from, and those that are kept aside."""
    found: dict[KeyPath, RowSource] = {("data",): data}
    if held_out:
        found["evaluation_data",] = held_out
    return found


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning, or continued pre-training on plain text."""

    data: TextDataConfig
    """Rows to learn from."""

    evaluation_data: TextDataConfig | None = None
    """Rows kept aside, for loss and perplexity."""

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the rows to learn from, and those that are kept aside."""
        return rows_of(self.data, self.evaluation_data)


class CostModelConfig(Section):
    """Costs from pairs with safety labels: above 0 is harmful, below 0 is safe (Dai et al. 2024)."""

    sign_coefficient: PositiveFloat = 1.0
    """Weight of the loss on the sign of each answer's cost, beside the loss on the order of the two."""

    regularisation: NonNegativeFloat = 0.001
    """Weight of the mean square of the costs."""


class RewardTrainingConfig(SupervisedConfig):
    """A reward model from rankings (Stiennon et al. 2020, Ouyang et al. 2022), or a cost model."""

    learns_scalar = True

    data: RankingDataConfig
    """Rankings to learn from."""

    evaluation_data: RankingDataConfig | None = None
    """Rankings kept aside, for accuracy."""

    loss: Literal["log_sigmoid", "sigmoid"] = "log_sigmoid"
    """Of a pair's difference of scores, negated. sigmoid is bounded, so that hopeless pairs hardly pull."""

    aggregation: Literal["pairs", "lists"] = "pairs"
    """Mean over all ordered pairs of the batch, or over lists of each list's mean."""

    centering_coefficient: NonNegativeFloat = 0.0
    """Weight of the squared sum of a pair's scores, which keeps scores near 0 (Eisenstein et al. 2023)."""

    members: int = Field(default=1, ge=1, le=32)
    """Models of an ensemble, each with a new head's seed and an order of the data of its own: seed, seed + 1, ..."""

    cost: CostModelConfig | None = None
    """Learn costs instead of rewards, from pairs of a safer and a less safe answer with labels. None: rewards."""

    @property
    def member_outputs(self) -> list[str]:
        """Run folder of each model: the first is the job's own, those of further members of an ensemble are below."""
        return [self.output, *(f"{self.output}/members/{number}" for number in range(2, self.members + 1))]

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the rows to learn from, and those that are kept aside."""
        return rows_of(self.data, self.evaluation_data)

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        if self.cost is not None:
            text = "has no effect beside cost, which learns from pairs and has a zero of its own"
            for name in ("loss", "aggregation", "centering_coefficient", "members"):
                if dict(self)[name] != type(self).model_fields[name].default:
                    yield Problem((name,), text)

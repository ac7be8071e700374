"""What may be said on the command line."""

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from rlhf_ray.config.jobs.labelling import FeedbackPageConfig
from rlhf_ray.config.run import CheckpointConfig, RunConfig, TrackingConfig

Judge = Literal["oracle", "people"]
RewardKind = Literal["true", "preferences"]
REWARD_KINDS: tuple[RewardKind, ...] = get_args(RewardKind)

LARGEST_SEED = 2**31 - 1
FIRST_COMPARISONS = 4
"""A predictor needs something to begin with."""


class Settings(RunConfig):
    """Runs with the true reward and with one learned from choices between clips, for several seeds."""

    output: str = "outputs/online_preferences"
    """Folder of all runs: `true/seed_0`, `preferences/seed_0`, and so on; running again goes on there."""

    task: Literal["pendulum", "cartpole"] = "pendulum"
    """What is to be learned."""

    rewards: list[RewardKind] = Field(default_factory=lambda: list(REWARD_KINDS), min_length=1)
    """From what: the task's own reward, choices between clips, or one after the other."""

    judge: Judge = "oracle"
    """Who chooses: the true return of the clips, or people in a browser."""

    seeds: list[int] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    """One run of each kind for each; they seed networks, environments, clips and queries."""

    rounds: PositiveInt = 60
    """In each, all roles work side by side: episodes and their update, a fit of the predictors, new comparisons."""

    episodes: PositiveInt = 16
    """Of a round."""

    comparisons: int = Field(default=700, ge=FIRST_COMPARISONS)
    """Of a whole run at most (Christiano et al. 2017 ask for 700)."""

    first_share: float = Field(default=0.25, gt=0, le=1)
    """Share of them that is asked before the policy learns."""

    members: int = Field(default=3, ge=2)
    """Reward predictors; one alone never disagrees."""

    fit_steps: PositiveInt = 50
    """Optimizer steps of the predictors in a round."""

    evaluate_every: PositiveInt = 5
    """Rounds between evaluations by the true return."""

    evaluation_episodes: PositiveInt = 50
    """Of an evaluation, with the likeliest actions."""

    store: str | None = None
    """Where pairs wait for people: a file of SQLite, or postgresql://user@host/name. None: a file in the folder."""

    host: str = "127.0.0.1"
    """Address of the page. Any other than loopback asks each visitor for a token."""

    port: int = Field(default=8904, ge=1, le=65535)
    """Port of the page."""

    token_file: str | None = None
    """File that holds the token; see `rlhf label`."""

    language: Literal["zh", "en"] = "zh"
    """Language in which the page opens."""

    answer_minutes: PositiveFloat = 30
    """The policy waits so long for people before the run is saved and ends; the same command goes on."""

    checkpoint: CheckpointConfig = Field(default_factory=lambda: CheckpointConfig(every_steps=10))
    """Rounds between checkpoints."""

    tracking: TrackingConfig = Field(default_factory=lambda: TrackingConfig(wandb="off", tensorboard=False))
    """Where metrics go besides the run folders."""

    @field_validator("seeds")
    @classmethod
    def _usable_seeds(cls, seeds: list[int]) -> list[int]:
        if any(not 0 <= seed <= LARGEST_SEED for seed in seeds) or len(set(seeds)) < len(seeds):
            raise ValueError(f"are different whole numbers from 0 to {LARGEST_SEED}")
        return seeds

    @model_validator(mode="after")
    def _check(self) -> Self:
        if round(self.comparisons * self.first_share) < FIRST_COMPARISONS:
            raise ValueError(
                f"first_share: {self.first_share:g} of {self.comparisons} comparisons are fewer than the "
                f"{FIRST_COMPARISONS} that the predictors need to begin with"
            )
        if self.judge == "people" and len(self.seeds) > 1 and "preferences" in self.rewards:
            raise ValueError("seeds: people judge one run at a time; give one seed, such as --seeds [0]")
        if self.store is not None and self.judge == "oracle":
            raise ValueError("store: an oracle needs none; it is for --judge people")
        if self.store is not None:
            self.page()
        return self

    def page(self) -> FeedbackPageConfig:
        """Return the settings of the page, checked as `rlhf label` checks them."""
        return FeedbackPageConfig(
            store=self.store or str(Path(self.output) / "clips.db"),
            host=self.host,
            port=self.port,
            token_file=self.token_file,
            language=self.language,
        )

    def one(self, kind: RewardKind, seed: int) -> Self:
        """Return the settings of a single run, in a folder of its own."""
        folder = str(Path(self.output) / kind / f"seed_{seed}")
        return self.model_copy(update={"output": folder, "rewards": [kind], "seeds": [seed], "seed": seed})

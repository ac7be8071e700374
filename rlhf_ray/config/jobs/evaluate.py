"""`rlhf evaluate`: several models side by side."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import Field

from rlhf_ray.config.checks.costs import untrained_cost_problems
from rlhf_ray.config.checks.evaluate import evaluate_problems
from rlhf_ray.config.checks.files import absent_file
from rlhf_ray.config.checks.inference import sampling_problems
from rlhf_ray.config.data import PromptDataConfig, RowSource, TextDataConfig
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.jobs.inference import SamplingConfig
from rlhf_ray.config.jobs.judges import JudgeConfig, PeopleJudge
from rlhf_ray.config.model import HeldModel, ModelConfig
from rlhf_ray.config.numbers import Samples, Seed, Tokens
from rlhf_ray.config.paths import PathText
from rlhf_ray.config.placement import GENERATE, LOGPROBS, SCORE, ClusterConfig, GroupConfig, Phases, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import FunctionReward, RewardConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import ReferenceConfig


class ComparedModel(ModelConfig):
    """One of the models."""

    run: PathText | None = None
    """Folder of the run that made it, for wall time and peak memory. None: the folder above `path`, if it is one."""


class EvaluateConfig(JobConfig):
    """Compare models on the same held-out prompts: rewards, an oracle, KL, diversity, perplexity, win rates, cost."""

    phases_apart = True

    output: PathText
    """Folder of answers, scores, summary.json and comparison.html; the same command goes on where it stopped."""

    seed: Seed = 0
    """Seeds sampling; all models answer with the same seeds."""

    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    """Which Ray to use, and deadlines."""

    groups: dict[str, GroupConfig] = Field(default_factory=lambda: {"main": GroupConfig()})
    """Named groups of nodes; roles say which one they are on."""

    environment: EnvironmentConfig = Field(default_factory=EnvironmentConfig)
    """Environment variables of the workers."""

    models: dict[str, ComparedModel] = Field(min_length=1)
    """The models by name, in the order in which they are shown. One at a time is loaded."""

    baseline: str | None = None
    """Name of the model against which win rates and differences are taken. None: the first."""

    reference: str | None = None
    """Name of the model to which KL is measured. None: no KL."""

    data: PromptDataConfig
    """Held-out prompts."""

    samples_per_prompt: Samples = 1
    """Responses of each model to each prompt."""

    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    """The engines."""

    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    """Restrictions of the sampling distribution."""

    rewards: list[RewardConfig] = Field(default_factory=list)
    """Reward sources; the reward of a response is their weighted sum."""

    oracle: FunctionReward | None = None
    """A judgement that no training has seen, called as a reward function is. None: none."""

    texts: TextDataConfig | None = None
    """Held-out texts for perplexity, by which the alignment tax shows. None: none."""

    judges: list[JudgeConfig] = Field(default_factory=list)
    """Who compares each model's answers with the baseline's."""

    measure: ReferenceConfig = Field(default_factory=ReferenceConfig)
    """Placement of the models while their log-probabilities are computed."""

    tokens_per_microbatch: Tokens = 8192
    """Tokens, padding counted, of one forward pass on one worker."""

    def node_groups(self) -> Mapping[str, GroupConfig]:
        """Return `groups`."""
        return self.groups

    def worker_environment(self) -> EnvironmentConfig:
        """Return `environment`."""
        return self.environment

    def placements(self) -> dict[KeyPath, PlacementConfig]:
        """Return all roles; log-probabilities are measured only where there is a reference, or texts."""
        roles = {("rollout",): self.rollout} | super().placements()
        return roles | ({("measure",): self.measure} if self.reference is not None or self.texts is not None else {})

    def phases(self) -> Phases:
        """Return the phases, each with roles of its own."""
        return {GENERATE: ("rollout",), SCORE: ("rewards", "oracle"), LOGPROBS: ("measure",)}

    def reward_sources(self) -> dict[KeyPath, RewardConfig]:
        """Return `rewards`, and the oracle."""
        found: dict[KeyPath, RewardConfig] = {("rewards", index): reward for index, reward in enumerate(self.rewards)}
        return found | ({("oracle",): self.oracle} if self.oracle is not None else {})

    def model_paths(self) -> dict[KeyPath, str]:
        """Return those of the compared models, and of reward models."""
        models = self.models.items()
        found: dict[KeyPath, str] = {
            ("models", name, *key): path for name, model in models for key, path in model.paths().items()
        }
        return found | super().model_paths()

    def held_models(self) -> dict[KeyPath, list[HeldModel]]:
        """Return any of the compared models, which are loaded one at a time, and reward models."""
        answering = [HeldModel(model) for model in self.models.values()]
        measured = [HeldModel(model, self.tokens_per_microbatch) for model in self.models.values()]
        return {("rollout",): answering, ("measure",): measured} | super().held_models()

    def longest_sample(self) -> int:
        """Return the tokens of the longest prompt with the longest response."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    def batch_lines(self) -> Iterator[str]:
        """Say how many responses there are."""
        yield (
            f"{len(self.models)} models one after another, each with {self.samples_per_prompt} responses to each "
            f"prompt, of at most {self.rollout.max_new_tokens} tokens, by {self.rollout.workers} engines."
        )

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the prompts, and the held-out texts."""
        return {("data",): self.data} | ({("texts",): self.texts} if self.texts else {})

    def output_folder(self) -> str | None:
        """Return `output`."""
        return self.output

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        yield from sampling_problems(self.sampling, self.samples_per_prompt, self.rollout)
        yield from evaluate_problems(self)
        yield from untrained_cost_problems(self.reward_sources())

    def missing(self) -> Iterator[Problem]:
        """Find verdicts and run folders that are not there."""
        for index, judge in enumerate(self.judges):
            if isinstance(judge, PeopleJudge):
                yield from absent_file(("judges", index, "path"), judge.path)
        for name, model in self.models.items():
            if model.run is not None and not (Path(model.run).expanduser() / "config.yaml").is_file():
                yield Problem(("models", name, "run"), f"{model.run} is no run folder: it has no config.yaml")

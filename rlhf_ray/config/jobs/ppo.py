"""`rlhf ppo`: the whole of what a user may say about a policy-gradient run."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self

from pydantic import Field, model_validator

from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.algorithm import algorithm_problems
from rlhf_ray.config.checks.costs import cost_problems
from rlhf_ray.config.checks.files import absent_replay
from rlhf_ray.config.checks.roles import attention_problems, policy_adapter_problems, transport_problems
from rlhf_ray.config.data import PromptDataConfig, RowSource, TextDataConfig
from rlhf_ray.config.episodes import ENVIRONMENT, EpisodeRolloutConfig
from rlhf_ray.config.model import HeldModel, ModelConfig
from rlhf_ray.config.numbers import PositiveFloat, PositiveInt, Samples, Tokens
from rlhf_ray.config.placement import GENERATE, SCORE, SYNC, TRAIN, Phases, PlacementConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import ModelReward, RewardConfig
from rlhf_ray.config.run import RunConfig
from rlhf_ray.config.training import COST_CRITIC, CriticConfig, PolicyConfig, ReferenceConfig


class EvaluationConfig(Section):
    """Held-out prompts, answered and scored while training."""

    data: PromptDataConfig | None = None
    """Prompts kept for evaluation. None: no evaluation; the report shows answers to a few prompts of `data`."""

    every_steps: PositiveInt = 20
    """Steps between evaluations; one is also made before the first step and after the last."""

    samples_per_prompt: Samples = 1
    """Responses to each prompt."""


class PretrainingConfig(Section):
    """Texts whose likelihood the policy learns beside the rewards, so that it forgets less (Ouyang et al. 2022)."""

    data: TextDataConfig
    """The texts."""

    coefficient: PositiveFloat = 0.05
    """Weight of their mean negative log-likelihood, gamma in the paper."""

    batch_size: PositiveInt = 32
    """Rows mixed into each optimizer step of the policy."""


def _critics(given: dict[str, Any]) -> dict[str, CriticConfig]:
    algorithm = given.get("algorithm")
    if algorithm is not None and algorithm.has_cost_critic:
        return {"value": CriticConfig(), COST_CRITIC: CriticConfig()}
    return {"value": CriticConfig()} if algorithm is None or algorithm.has_critic else {}


class PPOConfig(RunConfig):
    """Train a policy by reinforcement learning against reward sources."""

    learns_from_samples = True

    model: ModelConfig
    """The policy's starting point, also the reference."""

    data: PromptDataConfig
    """Prompts."""

    steps: PositiveInt = 100
    """Rollout batches of the run."""

    prompts_per_step: PositiveInt = 64
    """Prompts of one rollout batch."""

    samples_per_prompt: Samples = 1
    """Responses to each prompt."""

    minibatches: PositiveInt = 4
    """Optimizer steps of one pass over the batch."""

    epochs: PositiveInt = 2
    """Passes over each batch."""

    tokens_per_microbatch: Tokens = 8192
    """Tokens, padding counted, of one forward and backward pass on one rank."""

    policy: PolicyConfig = Field(default_factory=PolicyConfig)
    """The trained policy."""

    reference: ReferenceConfig = Field(default_factory=ReferenceConfig)
    """The frozen starting point."""

    rewards: list[RewardConfig] = Field(default_factory=list)
    """Reward sources; the reward of a response is their weighted sum, its cost that of sources that measure cost. What
    an environment gives counts beside them, and may be all."""

    rollout: EpisodeRolloutConfig = Field(default_factory=EpisodeRolloutConfig)
    """The engines that write samples."""

    algorithm: AlgorithmConfig = Field(default_factory=AlgorithmConfig)
    """How rewards become updates."""

    ptx: PretrainingConfig | None = None
    """Pre-training loss mixed into the policy's (PPO-ptx). None: none."""

    critics: dict[str, CriticConfig] = Field(default_factory=_critics)
    """Value models, by name; by default one, none where the estimator needs none, and a second one, `cost`, where
    algorithm.lagrangian has a cost critic."""

    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)
    """Evaluation while training."""

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        samples = self.prompts_per_step * self.samples_per_prompt
        if samples % self.minibatches:
            raise ValueError(
                f"minibatches: {self.minibatches} does not divide the batch of {samples} samples "
                f"(prompts_per_step {self.prompts_per_step} x samples_per_prompt {self.samples_per_prompt})"
            )
        return self

    @property
    def has_kl(self) -> bool:
        """Whether the policy is compared with the model that it began from."""
        return self.algorithm.kl.coefficient > 0 or self.algorithm.kl.target is not None

    @property
    def adapter_off_is_reference(self) -> bool:
        """Whether the policy with its adapter switched off is what it is compared with."""
        return self.has_kl and self.policy.lora is not None

    @property
    def policy_infers(self) -> bool:
        """Whether the policy reads a batch before it learns: for its own log-probabilities, or as its own reference."""
        return self.algorithm.old_logprobs == "trainer" or self.adapter_off_is_reference

    @property
    def longest_training_sample(self) -> int:
        """Tokens of the longest prompt to learn from, held-out ones left aside, with the longest response."""
        return self.data.max_prompt_tokens + self.rollout.max_new_tokens

    def critic_path(self, name: str) -> str:
        """Return the model that a critic starts from: its own path, else the first model of what it learns, else the
        policy."""
        path, learns = self.critics[name].path, "cost" if name == COST_CRITIC else "reward"
        if path is None:
            sources = (source for source in self.rewards if isinstance(source, ModelReward))
            path = next((source.path for source in sources if source.measures == learns), "policy")
        return self.model.path if path == "policy" else path

    def placements(self) -> dict[KeyPath, PlacementConfig]:
        """Return all roles; a reference only where KL has a weight, and the policy no adapter to switch off."""
        roles: dict[KeyPath, PlacementConfig] = {("policy",): self.policy, ("rollout",): self.rollout}
        roles |= {("critics", name): critic for name, critic in self.critics.items()}
        if self.has_kl and self.policy.lora is None:
            roles["reference",] = self.reference
        return roles | super().placements()

    def phases(self) -> Phases:
        """Return the phases of a step, and in which order roles take turns in SCORE and TRAIN where they share devices.

        In this order a critic is still awake when TRAIN begins, and the policy when SYNC does. With staleness, engines
        and what does not learn work on the next batches too.
        """
        ahead = ("reference", "rewards", "rollout") if self.algorithm.max_staleness else ()
        return {
            GENERATE: ("rollout",),
            SCORE: ("rewards", "reference", *(["policy"] if self.policy_infers else []), "critics", *ahead[2:]),
            TRAIN: ("critics", "policy", *ahead),
            SYNC: ("policy", "rollout"),
        }

    def reward_sources(self) -> dict[KeyPath, RewardConfig]:
        """Return `rewards`."""
        return {("rewards", index): reward for index, reward in enumerate(self.rewards)}

    def model_paths(self) -> dict[KeyPath, str]:
        """Return the policy's, those of reward models, and those that critics have of their own."""
        found: dict[KeyPath, str] = {("model", *key): path for key, path in self.model.paths().items()}
        critics = self.critics.items()
        own = {("critics", name, "path"): one.path for name, one in critics if one.path and one.path != "policy"}
        return found | super().model_paths() | own

    def trained_model(self) -> ModelConfig:
        """Return the policy."""
        return self.model

    def held_models(self) -> dict[KeyPath, list[HeldModel]]:
        """Return the policy, its frozen start, critics, reward models, and the policy as engines hold it."""
        tokens = max(self.tokens_per_microbatch, self.longest_sample())
        policy = HeldModel(self.model, tokens)
        held: dict[KeyPath, list[HeldModel]] = {("policy",): [policy], ("reference",): [policy]}
        for name in self.critics:
            start = self.model.model_copy(update={"path": self.critic_path(name)})
            held["critics", name] = [HeldModel(start, tokens, scalar=True)]
        return held | super().held_models() | {("rollout",): [HeldModel(self.model)]}

    def longest_sample(self) -> int:
        """Return the tokens of the longest prompt, held-out ones among them, with the longest response."""
        prompts = [data.max_prompt_tokens for data in (self.data, self.evaluation.data) if data is not None]
        return max(prompts) + self.rollout.max_new_tokens

    def max_staleness(self) -> int | None:
        """Return that of the algorithm; None where replayed answers take the place of the engines'."""
        return self.algorithm.max_staleness if self.rollout.replay is None else None

    def step_tokens(self) -> Mapping[str, int]:
        """Return the tokens of a batch, those that are learned from in each pass over it."""
        tokens = self.prompts_per_step * self.samples_per_prompt * self.longest_sample()
        return {GENERATE: tokens, SCORE: tokens, TRAIN: tokens * self.epochs}

    def data_sets(self) -> dict[KeyPath, RowSource]:
        """Return the prompts, the texts that are mixed in, and held-out prompts."""
        found: dict[KeyPath, RowSource] = {("data",): self.data}
        if self.ptx:
            found["ptx", "data"] = self.ptx.data
        if self.evaluation.data:
            found["evaluation", "data"] = self.evaluation.data
        return found

    def problems(self) -> Iterator[Problem]:
        """Find what is wrong between the sections."""
        yield from super().problems()
        yield from attention_problems(self.model, self.placements())
        yield from transport_problems(self.policy, self.rollout)
        samples = self.prompts_per_step * self.samples_per_prompt
        if samples // self.minibatches < self.policy.workers:
            text = f"leaves {samples // self.minibatches} samples for {self.policy.workers} ranks of the policy"
            yield Problem(("minibatches",), text)
        if self.rollout.replay and self.rollout.record:
            text = "replayed samples are on file already; leave out record or replay"
            yield Problem(("rollout", "record"), text)
        if self.rollout.replay and self.rollout.deterministic:
            yield Problem(("rollout", "deterministic"), "has no effect under replay; leave out one of them")
        yield from self.environment_problems()
        yield from algorithm_problems(self)
        yield from policy_adapter_problems(self)
        yield from cost_problems(self)

    def environment_problems(self) -> Iterator[Problem]:
        """Find what is wrong with turns, environment, and who rewards."""
        environment = self.rollout.environment
        for problem in self.rollout.episode_problems(self.cluster.deadlines.call_seconds):
            yield Problem(("rollout", *problem.key), problem.message)
        if environment is None and not self.rewards:
            yield Problem(("rewards",), "needs at least one source, or rollout.environment, which rewards episodes")
        if environment is not None and not environment.gives_rewards and not self.rewards:
            text = f"needs at least one source: rollout.environment of kind {environment.kind} rewards nothing"
            yield Problem(("rewards",), text)
        for index, source in enumerate(self.rewards):
            if environment is not None and source.name == ENVIRONMENT:
                text = f"{ENVIRONMENT!r} names what rollout.environment gives; choose another name"
                yield Problem(("rewards", index, "name"), text)

    def missing(self) -> Iterator[Problem]:
        """Find a recording, or an environment's file, that is not there."""
        yield from absent_replay(self.rollout)
        if self.rollout.environment is not None:
            for problem in self.rollout.environment.missing():
                yield Problem(("rollout", ENVIRONMENT, *problem.key), problem.message)

    def batch_lines(self) -> Iterator[str]:
        """Say what a step comes to: samples, tokens and optimizer steps."""
        samples = self.prompts_per_step * self.samples_per_prompt
        minibatch = samples // self.minibatches
        updates = self.minibatches * self.epochs
        longest = self.longest_training_sample
        microbatches = math.ceil(minibatch / self.policy.workers * longest / self.tokens_per_microbatch)
        yield (
            f"Each step: {self.prompts_per_step} prompts x {self.samples_per_prompt} = {samples} samples, "
            f"{samples / self.rollout.workers:g} for each of {self.rollout.workers} engines; "
            f"at most {samples * longest:,} tokens ({samples} x {longest})."
        )
        if self.algorithm.filter_groups is not None:
            most = self.prompts_per_step * (self.algorithm.filter_groups - 1)
            yield f"Groups whose rewards are all equal are replaced, with up to {most} further prompts."
        if stale := self.algorithm.max_staleness:
            ends = self.rollout.deterministic or not self.rollout.in_flight
            go_on = "are written to their end before weights change" if ends else "go on with new weights as they come"
            yield f"While the policy learns, engines write the next {stale} batches, which {go_on}."
        if self.algorithm.advantages == "remax":
            yield f"Besides, one greedy response to each of the {self.prompts_per_step} prompts."
        yield (
            f"Each update: {minibatch} samples, {minibatch / self.policy.workers:g} for each of "
            f"{self.policy.workers} ranks of the policy, in up to {microbatches} micro-batches "
            f"of {self.tokens_per_microbatch} tokens."
        )
        yield (
            f"{self.minibatches} minibatches x {self.epochs} epochs = {updates} updates a step; "
            f"{self.steps} steps: {samples * self.steps:,} samples, {updates * self.steps:,} updates."
        )

    def batch_warnings(self) -> Iterator[str]:
        """Name batches that do not divide evenly, and samples longer than a micro-batch."""
        longest = self.longest_training_sample
        if longest > self.tokens_per_microbatch:
            yield (
                f"tokens_per_microbatch: {self.tokens_per_microbatch} is less than the longest sample, {longest} "
                "(data.max_prompt_tokens + rollout.max_new_tokens); it makes a micro-batch of its own"
            )
        minibatch = self.prompts_per_step * self.samples_per_prompt // self.minibatches
        if minibatch % self.policy.workers:
            yield f"policy.workers: {minibatch} samples of an update do not divide by {self.policy.workers} ranks"
        if self.prompts_per_step % self.rollout.workers:
            prompts, engines = self.prompts_per_step, self.rollout.workers
            yield f"rollout.workers: {prompts} prompts of a step do not divide by {engines} engines"

    def adapter_lines(self) -> Iterator[str]:
        """Say also what is the reference, and how engines get the adapter."""
        yield from super().adapter_lines()
        if self.policy.lora is not None:
            if self.has_kl:
                yield "The reference is the policy with its adapter off, on the policy's own workers."
            ways = {"merged": "merged into the weights that travel", "reload": "alone, and load it in place"}
            yield f"Engines get the adapter {ways[self.rollout.adapter]}."

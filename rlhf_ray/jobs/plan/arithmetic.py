"""What the batch words of a config come to: samples, tokens and optimizer steps; and what looks unintended."""

import math
from collections.abc import Iterator

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.parts import groups_of, longest_sample, placements_of
from rlhf_ray.config.jobs.evaluate import EvaluateConfig
from rlhf_ray.config.jobs.inference import GenerateConfig
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.supervised import SupervisedConfig
from rlhf_ray.config.lora import ALL_LINEAR
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.runs.phases import parts_of


def adapter_lines(config: Section) -> Iterator[str]:
    """Which roles train an adapter, on what, and what follows from it."""
    for key, role in placements_of(config).items():
        if isinstance(role, TrainerConfig) and role.lora is not None:
            layers = ", ".join(role.lora.target_modules).replace(ALL_LINEAR, "all linear layers")
            yield f"{'.'.join(map(str, key))} trains an adapter of rank {role.lora.r} on {layers}."
    if isinstance(config, PPOConfig) and config.policy.lora is not None:
        if config.algorithm.kl.coefficient > 0:
            yield "The reference is the policy with its adapter off, on the policy's own workers."
        ways = {"merged": "merged into the weights that travel", "reload": "alone, and load it in place"}
        yield f"Engines get the adapter {ways[config.rollout.adapter]}."


def batch_lines(config: Section) -> list[str]:
    """The batch arithmetic of a job, one statement a line."""
    if isinstance(config, PPOConfig):
        return list(_ppo(config))
    if isinstance(config, SupervisedConfig):
        rows = config.batch_size / config.trainer.workers
        return [
            f"Each optimizer step: {config.batch_size} rows, {rows:g} for each of {config.trainer.workers} ranks, "
            f"in micro-batches of at most {config.tokens_per_microbatch} tokens.",
            f"{config.epochs:g} passes over the data.",
        ]
    if isinstance(config, GenerateConfig):
        return [
            f"{config.samples_per_prompt} responses to each prompt, of at most {config.rollout.max_new_tokens} tokens, "
            f"by {config.rollout.workers} engines."
        ]
    if isinstance(config, EvaluateConfig):
        return [
            f"{len(config.models)} models one after another, each with {config.samples_per_prompt} responses to each "
            f"prompt, of at most {config.rollout.max_new_tokens} tokens, by {config.rollout.workers} engines."
        ]
    return []


def _ppo(config: PPOConfig) -> Iterator[str]:
    samples = config.prompts_per_step * config.samples_per_prompt
    minibatch = samples // config.minibatches
    updates = config.minibatches * config.epochs
    longest = longest_sample(config)
    microbatches = math.ceil(minibatch / config.policy.workers * longest / config.tokens_per_microbatch)
    yield (
        f"Each step: {config.prompts_per_step} prompts x {config.samples_per_prompt} = {samples} samples, "
        f"{samples / config.rollout.workers:g} for each of {config.rollout.workers} engines; "
        f"at most {samples * longest:,} tokens ({samples} x {longest})."
    )
    if config.algorithm.filter_groups is not None:
        most = config.prompts_per_step * (config.algorithm.filter_groups - 1)
        yield f"Groups whose rewards are all equal are replaced, with up to {most} further prompts."
    if config.algorithm.advantages == "remax":
        yield f"Besides, one greedy response to each of the {config.prompts_per_step} prompts."
    yield (
        f"Each update: {minibatch} samples, {minibatch / config.policy.workers:g} for each of "
        f"{config.policy.workers} ranks of the policy, in up to {microbatches} micro-batches "
        f"of {config.tokens_per_microbatch} tokens."
    )
    yield (
        f"{config.minibatches} minibatches x {config.epochs} epochs = {updates} updates a step; "
        f"{config.steps} steps: {samples * config.steps:,} samples, {updates * config.steps:,} updates."
    )


def warnings_of(config: Section) -> list[str]:
    """Settings that are allowed but look unintended."""
    return [*_uneven(config), *_idle(config)]


def _uneven(config: Section) -> Iterator[str]:
    if isinstance(config, PPOConfig):
        longest = longest_sample(config)
        if longest > config.tokens_per_microbatch:
            yield (
                f"tokens_per_microbatch: {config.tokens_per_microbatch} is less than the longest sample, {longest} "
                "(data.max_prompt_tokens + rollout.max_new_tokens); it makes a micro-batch of its own"
            )
        minibatch = config.prompts_per_step * config.samples_per_prompt // config.minibatches
        if minibatch % config.policy.workers:
            yield f"policy.workers: {minibatch} samples of an update do not divide by {config.policy.workers} ranks"
        if config.prompts_per_step % config.rollout.workers:
            prompts, engines = config.prompts_per_step, config.rollout.workers
            yield f"rollout.workers: {prompts} prompts of a step do not divide by {engines} engines"
    if isinstance(config, SupervisedConfig) and config.batch_size % config.trainer.workers:
        yield f"batch_size: {config.batch_size} rows do not divide evenly by {config.trainer.workers} ranks"


def _idle(config: Section) -> Iterator[str]:
    placements = {".".join(map(str, key)): placement for key, placement in placements_of(config).items()}
    parts = [[placements[role] for role in part.layout.slots] for part in parts_of(config)]
    for name, group in groups_of(config).items():
        # Roles of one part after another use the same GPUs.
        asked = [sum(role.gpus_per_worker * role.workers for role in part if role.on == name) for part in parts]
        if not any(role.on == name for part in parts for role in part):
            yield f"groups.{name}: no role is on it"
        elif max(asked) < group.gpus_per_node * group.nodes:
            yield f"groups.{name}: {group.gpus_per_node * group.nodes - max(asked):g} of its GPUs are not used"

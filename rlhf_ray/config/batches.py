"""What the batch words of policy-gradient jobs come to."""

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.ppo import PPOConfig


def policy_gradient_lines(config: "PPOConfig") -> Iterator[str]:
    """Say what a step of a policy-gradient job comes to: samples, tokens and optimizer steps."""
    samples = config.prompts_per_step * config.samples_per_prompt
    minibatch = samples // config.minibatches
    updates = config.minibatches * config.epochs
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
    microbatches = math.ceil(minibatch / config.policy.workers * longest / config.tokens_per_microbatch)
    yield (
        f"Each step: {config.prompts_per_step} prompts x {config.samples_per_prompt} = {samples} samples, "
        f"{samples / config.rollout.workers:g} for each of {config.rollout.workers} engines; "
        f"at most {samples * longest:,} tokens ({samples} x {longest})."
    )
    if config.algorithm.filter_groups is not None:
        most = config.prompts_per_step * (config.algorithm.filter_groups - 1)
        yield f"Groups whose rewards are all equal are replaced, with up to {most} further prompts."
    if stale := config.algorithm.max_staleness:
        ends = config.rollout.deterministic or not config.rollout.in_flight
        go_on = "are written to their end before weights change" if ends else "go on with new weights as they come"
        yield f"While the policy learns, engines write the next {stale} batches, which {go_on}."
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


def policy_gradient_warnings(config: "PPOConfig") -> Iterator[str]:
    """Name batches that do not divide evenly, and samples longer than a micro-batch."""
    longest = config.data.max_prompt_tokens + config.rollout.max_new_tokens
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

"""Settings of policy-gradient algorithms that contradict each other, or have no effect beside each other."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rlhf_ray.config.algorithm import COMPARES_GROUPS, ONE_ADVANTAGE_A_ROW, POLICY_LOSSES, AlgorithmConfig
from rlhf_ray.config.reading.documents import Problem

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.ppo import PPOConfig

ANOTHER_SAMPLED = "another policy sampled what is replayed, so the engine's log-probabilities are not this one's"
OF_THE_CRITIC = ("gae_lambda", "value_clip_range", "critic_warmup_steps")


def algorithm_problems(config: "PPOConfig") -> Iterator[Problem]:
    """Find what is wrong with the algorithm of a PPO config, and with what it needs of the other sections."""
    for one in (_critic, _groups, _loss, _kl, _off_policy, _staleness, _rewards, _average):
        yield from one(config)


def _critic(config: "PPOConfig") -> Iterator[Problem]:
    algorithm = config.algorithm
    if algorithm.has_critic:
        if not config.critics:
            yield Problem(("critics",), "needs at least one value model, such as `critics: {value: {}}`")
        if algorithm.critic_warmup_steps >= config.steps:
            yield Problem(("algorithm", "critic_warmup_steps"), f"leaves the policy none of {config.steps} steps")
        return
    if config.critics:
        text = f"algorithm.advantages {algorithm.advantages} needs no critic; leave critics out, or set gae"
        yield Problem(("critics",), text)
    yield from _without_effect(algorithm, OF_THE_CRITIC, f"advantages {algorithm.advantages}, which has no critic")


def _groups(config: "PPOConfig") -> Iterator[Problem]:
    name, samples = config.algorithm.advantages, config.samples_per_prompt
    compares = name in COMPARES_GROUPS
    if compares and samples < 2:
        text = f"algorithm.advantages {name} compares the responses to a prompt: set 2 or more, not {samples}"
        yield Problem(("samples_per_prompt",), text)
    elif config.algorithm.filter_groups is not None and samples < 2:
        text = "algorithm.filter_groups compares the responses to a prompt: set 2 or more, or leave it out"
        yield Problem(("samples_per_prompt",), text)
    if compares and config.prompts_per_step % config.minibatches:
        text = (
            f"{config.minibatches} does not divide prompts_per_step {config.prompts_per_step}: "
            f"{name} keeps the responses to a prompt in one minibatch"
        )
        yield Problem(("minibatches",), text)
    discounts = ("gamma",) if name in ONE_ADVANTAGE_A_ROW | {"reinforce_plus_plus_baseline"} else ()
    yield from _without_effect(config.algorithm, discounts, f"advantages {name}, which does not discount")


def _loss(config: "PPOConfig") -> Iterator[Problem]:
    algorithm, loss = config.algorithm, config.algorithm.policy_loss
    settings = POLICY_LOSSES[loss]
    if settings.one_advantage_a_row and not one_advantage_a_row(algorithm):
        text = (
            f"{loss} needs one advantage for each response, but {algorithm.advantages} gives each token its "
            f"own; set advantages to one of {', '.join(sorted(ONE_ADVANTAGE_A_ROW))}"
        )
        yield Problem(("algorithm", "policy_loss"), text)
    if not settings.clips:
        ranges = ("clip_range", "clip_range_high")
        yield from _without_effect(algorithm, ranges, f"policy_loss {loss}, which has no clip")
    if algorithm.dual_clip is not None:
        if not settings.dual_clip:
            yield Problem(("algorithm", "dual_clip"), f"is part of policy_loss clip; {loss} has none")
        elif algorithm.dual_clip <= 1 + (algorithm.clip_range_high or algorithm.clip_range):
            text = f"{algorithm.dual_clip:g} lies within the clip range; it bounds ratios beyond it, such as 3"
            yield Problem(("algorithm", "dual_clip"), text)
    if not settings.unbounded_below and algorithm.clip_range >= 1:
        text = f"{algorithm.clip_range:g} reaches ratio 0 and below; give one below 1, such as 0.2"
        yield Problem(("algorithm", "clip_range"), text)


def one_advantage_a_row(algorithm: AlgorithmConfig) -> bool:
    """Tell whether all tokens of a response have one advantage; returns have where nothing discounts or penalises."""
    if algorithm.advantages in ONE_ADVANTAGE_A_ROW:
        return True
    penalised = algorithm.reward_kl and algorithm.kl.coefficient > 0
    return not algorithm.has_critic and algorithm.gamma == 1 and not penalised


def _kl(config: "PPOConfig") -> Iterator[Problem]:
    kl = config.algorithm.kl
    if kl.target is not None and kl.coefficient == 0:
        yield Problem(("algorithm", "kl", "target"), "has no effect while coefficient is 0; give it a first value")
    if kl.place == "loss" and kl.estimator == "k1":
        text = (
            "k1 has the same gradient whatever the KL is, so it cannot act in the loss; use k2 or k3, or place: reward"
        )
        yield Problem(("algorithm", "kl", "estimator"), text)


def _off_policy(config: "PPOConfig") -> Iterator[Problem]:
    algorithm, (low, high) = config.algorithm, config.algorithm.off_policy_bounds
    if algorithm.off_policy == "none":
        yield from _without_effect(algorithm, ("off_policy_bounds",), "off_policy none")
    elif algorithm.old_logprobs == "engine" and not algorithm.max_staleness:
        text = "corrects from the engine's to the trainer's log-probabilities; old_logprobs engine leaves no such step"
        yield Problem(("algorithm", "off_policy"), text)
    if algorithm.old_logprobs == "engine" and config.rollout.replay is not None:
        yield Problem(("algorithm", "old_logprobs"), ANOTHER_SAMPLED)
    if low > high:
        yield Problem(("algorithm", "off_policy_bounds"), f"the lower bound {low:g} is above the upper one, {high:g}")


def _staleness(config: "PPOConfig") -> Iterator[Problem]:
    """Find older samples without a correction; to learn from them as they are has to be said twice."""
    algorithm, stale = config.algorithm, config.algorithm.max_staleness
    corrected, naive = algorithm.off_policy != "none", algorithm.old_logprobs == "engine"
    if not stale:
        if not config.rollout.in_flight:
            yield Problem(("rollout", "in_flight"), "has no effect beside algorithm.max_staleness 0; leave it out")
    elif naive and corrected:
        text = (
            f"engine beside max_staleness {stale} is naive PPO, whose ratio counts from older weights, and which loses "
            "much of what is learned; leave it out for decoupled PPO, or say off_policy none too"
        )
        yield Problem(("algorithm", "old_logprobs"), text)
    elif not naive and not corrected:
        text = (
            f"none leaves samples that are up to {stale} versions old uncorrected; leave it out for truncated weights, "
            "or say old_logprobs engine too for naive PPO"
        )
        yield Problem(("algorithm", "off_policy"), text)
    elif config.rollout.in_flight and config.rollout.deterministic and "in_flight" in config.rollout.model_fields_set:
        text = "true is at odds with rollout.deterministic, which ends requests before weights change; leave one out"
        yield Problem(("rollout", "in_flight"), text)


def _average(config: "PPOConfig") -> Iterator[Problem]:
    if config.policy.ema_decay is None and config.policy.ema_export == "instead":
        yield Problem(("policy", "ema_export"), "there is no average to export; set policy.ema_decay, such as 0.99")


def _rewards(config: "PPOConfig") -> Iterator[Problem]:
    algorithm, longest = config.algorithm, config.rollout.max_new_tokens
    if algorithm.reward_normalisation == "whiten" and algorithm.reward_baseline:
        text = "has no effect beside reward_normalisation whiten, which takes the mean away"
        yield Problem(("algorithm", "reward_baseline"), text)
    if algorithm.overlong_penalty is not None and algorithm.overlong_penalty[0] > longest:
        text = f"{algorithm.overlong_penalty[0]} tokens are more than rollout.max_new_tokens, {longest}"
        yield Problem(("algorithm", "overlong_penalty"), text)


def _without_effect(algorithm: AlgorithmConfig, names: Iterable[str], beside: str) -> Iterator[Problem]:
    """Find settings that differ from their defaults though nothing reads them."""
    for name in names:
        default = AlgorithmConfig.model_fields[name].get_default(
            call_default_factory=True, validated_data=dict(algorithm)
        )
        if dict(algorithm)[name] != default:
            yield Problem(("algorithm", name), f"has no effect beside {beside}; leave it out")

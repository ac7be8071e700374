"""Settings of safe RLHF that contradict each other: cost sources, their critic, and lambda."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from rlhf_ray.config.algorithm import LagrangianConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.config.training import COST_CRITIC

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.ppo import PPOConfig

OF_A_LEARNED_LAMBDA = ("cost_limit", "learning_rate", "maximum", "delay_steps", "window")


def untrained_cost_problems(sources: Mapping[KeyPath, RewardConfig]) -> Iterator[Problem]:
    """Find sources of costs in a job that trains nothing."""
    for key, source in sources.items():
        if source.measures == "cost":
            text = "cost has no meaning where nothing is trained; leave it out, or give a negative weight"
            yield Problem((*key, "measures"), text)


def cost_problems(config: "PPOConfig") -> Iterator[Problem]:
    """Find what is wrong with the cost sources of a PPO config, and with what they need of the other sections."""
    yield from _sources(config)
    yield from _critics(config)
    if config.algorithm.lagrangian is not None:
        yield from _multiplier(config, config.algorithm.lagrangian)


def _sources(config: "PPOConfig") -> Iterator[Problem]:
    costs = [index for index, source in enumerate(config.rewards) if source.measures == "cost"]
    if costs and len(costs) == len(config.rewards) and config.rollout.environment is None:
        yield Problem(("rewards",), "all sources measure cost; at least one must measure reward")
    if config.algorithm.lagrangian is None:
        for index in costs:
            text = (
                "cost is kept under a limit by algorithm.lagrangian, which is not set; set it, such as "
                "`lagrangian: {cost_limit: 0}`, or measure reward with a negative weight"
            )
            yield Problem(("rewards", index, "measures"), text)
    elif not costs:
        text = "there is no source of costs; add one to rewards with `measures: cost`, or leave this out"
        yield Problem(("algorithm", "lagrangian"), text)


def _critics(config: "PPOConfig") -> Iterator[Problem]:
    algorithm, names = config.algorithm, list(config.critics)
    if algorithm.lagrangian is not None and algorithm.lagrangian.place == "advantages" and not algorithm.has_critic:
        text = (
            f"advantages needs advantages gae and two critics, but the estimator is {algorithm.advantages}; set place: "
            "reward, which takes costs from the reward by a fixed multiplier"
        )
        yield Problem(("algorithm", "lagrangian", "place"), text)
    if not algorithm.has_critic:
        return
    of_rewards = [name for name in names if name != COST_CRITIC]
    if algorithm.has_cost_critic and COST_CRITIC not in names:
        text = f"algorithm.lagrangian needs a value model of costs: add `{COST_CRITIC}: {{}}`"
        yield Problem(("critics",), text)
    if not algorithm.has_cost_critic and COST_CRITIC in names:
        text = "learns costs, but none enter the advantages; leave it out, or set algorithm.lagrangian"
        yield Problem(("critics", COST_CRITIC), text)
    if names and len(of_rewards) != 1:
        given = ", ".join(of_rewards) or "none"
        yield Problem(("critics",), f"one value model learns the reward, such as `value: {{}}`; given are: {given}")


def _multiplier(config: "PPOConfig", lagrangian: LagrangianConfig) -> Iterator[Problem]:
    key = ("algorithm", "lagrangian")
    if lagrangian.place == "reward":
        for name in OF_A_LEARNED_LAMBDA:
            if dict(lagrangian)[name] != LagrangianConfig.model_fields[name].default:
                yield Problem((*key, name), "has no effect beside place: reward, whose multiplier is fixed")
        return
    if lagrangian.maximum is not None and lagrangian.multiplier > lagrangian.maximum:
        text = f"{lagrangian.multiplier:g} is above maximum, {lagrangian.maximum:g}, from the start"
        yield Problem((*key, "multiplier"), text)
    if lagrangian.multiplier == 0 and lagrangian.learning_rate > 0:
        text = "0 stays 0, since log lambda is what moves; begin with a small one such as 0.1, or set learning_rate: 0"
        yield Problem((*key, "multiplier"), text)
    if lagrangian.learning_rate > 0 and lagrangian.delay_steps >= config.steps:
        text = f"lambda rests through all of {config.steps} steps; give fewer, or set learning_rate: 0"
        yield Problem((*key, "delay_steps"), text)

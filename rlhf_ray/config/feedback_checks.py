"""Settings of PPO that have no place where one person scores one answer at a time."""

import math
from collections.abc import Iterator

from rlhf_ray.config.algorithm_checks import ANOTHER_SAMPLED
from rlhf_ray.config.base import Section
from rlhf_ray.config.feedback import FeedbackConfig
from rlhf_ray.config.problem import Problem


def feedback_problems(config: Section) -> Iterator[Problem]:
    """What is wrong between the fields of a feedback config."""
    if not isinstance(config, FeedbackConfig):
        return
    lowest, highest = config.reward_range
    if not (math.isfinite(lowest) and math.isfinite(highest) and lowest < highest):
        yield Problem(("reward_range",), f"is [lowest, highest], not [{lowest:g}, {highest:g}]")
    algorithm = config.algorithm
    if algorithm.whiten_advantages:
        text = "would take the mean of a single answer away, and with it the score; leave it out"
        yield Problem(("algorithm", "whiten_advantages"), text)
    if algorithm.reward_normalisation == "whiten":
        text = "takes away from a person's scores what they have in common; set scale or none"
        yield Problem(("algorithm", "reward_normalisation"), text)
    if algorithm.old_logprobs == "engine" and config.replay is not None:
        yield Problem(("algorithm", "old_logprobs"), ANOTHER_SAMPLED)
    if config.evaluation.data is not None:
        yield Problem(("evaluation", "data"), "nobody scores held-out answers here; leave it out")
    for name, value in (("record", config.rollout.record), ("replay", config.rollout.replay)):
        if value is not None:
            text = "feedback.jsonl in the run folder has every answer with its score; `replay` at the top reads one"
            yield Problem(("rollout", name), text)

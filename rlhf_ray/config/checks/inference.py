"""Checks of answers where nothing is trained: how they are sampled, filtered and scored."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rlhf_ray.config.checks.roles import recording_problems
from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import TOTAL_COLUMN, RewardConfig
from rlhf_ray.config.rollout import RolloutConfig

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.inference import SafetyConfig, SamplingConfig


def sampling_problems(sampling: "SamplingConfig", samples: int, rollout: RolloutConfig) -> Iterator[Problem]:
    """Find restrictions of the sampling distribution that contradict each other; `samples` answer each prompt."""
    if sampling.greedy and samples > 1:
        text = f"a greedy answer is always the same, so {samples} of them make no sense"
        yield Problem(("samples_per_prompt",), text)
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1):
        yield Problem(("sampling", "greedy"), "takes the most likely token; leave out top_p and top_k")
    yield from recording_problems(("rollout",), rollout, "`output` says where answers are written")


def score_column_problems(rewards: Sequence[RewardConfig]) -> Iterator[Problem]:
    """Find sources whose scores would stand in another's column of the rows."""
    alone = len(rewards) == 1 and rewards[0].weight == 1
    for index, source in enumerate(rewards):
        key: KeyPath = ("rewards", index, "name")
        if source.name == TOTAL_COLUMN and not alone:
            yield Problem(key, f"{TOTAL_COLUMN!r} is the column of the weighted sum; give this source another name")
        if source.name in {"prompt", "completion"}:
            yield Problem(key, f"{source.name!r} is a column of the rows; give this source another name")


def safety_problems(safety: "SafetyConfig", greedy: bool) -> Iterator[Problem]:
    """Find settings of a filter that have no effect; `greedy` says whether an answer is always the same."""
    if safety.action == "resample" and greedy:
        yield Problem(("safety", "action"), "a greedy answer is always the same, so drawing again changes nothing")
    for name, needed in (("resamples", "resample"), ("replacement", "replace")):
        if name in safety.model_fields_set and safety.action != needed:
            yield Problem(("safety", name), f"has no effect with action {safety.action}; set action to {needed}")

"""Checks of reward sources, wherever a config names some."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rlhf_ray.config.reading.documents import KeyPath, Problem
from rlhf_ray.config.rewards import TOTAL_COLUMN, RewardConfig

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.inference import SafetyConfig


def reward_problems(sources: Mapping[KeyPath, RewardConfig]) -> Iterator[Problem]:
    """Find what is wrong with each source, and names that two of them share."""
    seen: dict[str, KeyPath] = {}
    listed = {key: source for key, source in sources.items() if isinstance(key[-1], int)}
    for key, source in listed.items():
        if source.name in seen:
            yield Problem((*key, "name"), f"{source.name!r} also names {'.'.join(map(str, seen[source.name]))}")
        seen.setdefault(source.name, key)
    for key, source in sources.items():
        yield from (Problem((*key, *problem.key), problem.message) for problem in source.problems())


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

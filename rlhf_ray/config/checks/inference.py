"""Checks of how answers are sampled where nothing is trained."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rlhf_ray.config.checks.roles import recording_problems
from rlhf_ray.config.reading.documents import Problem
from rlhf_ray.config.rollout import RolloutConfig

if TYPE_CHECKING:
    from rlhf_ray.config.jobs.inference import SamplingConfig


def sampling_problems(sampling: "SamplingConfig", samples: int, rollout: RolloutConfig) -> Iterator[Problem]:
    """Find restrictions of the sampling distribution that contradict each other; `samples` answer each prompt."""
    if sampling.greedy and samples > 1:
        text = f"a greedy answer is always the same, so {samples} of them make no sense"
        yield Problem(("samples_per_prompt",), text)
    if sampling.greedy and (sampling.top_k or sampling.top_p < 1):
        yield Problem(("sampling", "greedy"), "takes the most likely token; leave out top_p and top_k")
    yield from recording_problems(("rollout",), rollout, "`output` says where answers are written")

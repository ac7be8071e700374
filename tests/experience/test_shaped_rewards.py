"""From rewards of the sources to scores: in which order, and what a failed reward does to the others."""

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.config.algorithm import AlgorithmConfig
from rlhf_ray.data.records import Sample
from rlhf_ray.experience.experience import shape_rewards
from tests.samples import make_sample

LONGEST = 10


def sample(length: int, finish_reason: str) -> Sample:
    return make_sample(length, finish_reason=finish_reason)


rows = st.lists(
    st.tuples(
        st.one_of(st.just(math.nan), st.floats(-5, 5, width=32)),
        st.integers(1, LONGEST),
        st.sampled_from(["stop", "length"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(
    batches=st.lists(rows, min_size=1, max_size=3),
    normalisation=st.sampled_from(["none", "scale", "whiten"]),
    baseline=st.sampled_from([0.0, 0.75]),
    clip=st.sampled_from([None, 1.5]),
    eos=st.sampled_from([0.0, 0.5]),
    overlong=st.sampled_from([None, (4, 2.0)]),
)
def test_as_the_loops_say(
    batches: list[list[tuple[float, int, str]]],
    normalisation: str,
    baseline: float,
    clip: float | None,
    eos: float,
    overlong: tuple[int, float] | None,
) -> None:
    baseline = 0.0 if normalisation == "whiten" else baseline
    algorithm = AlgorithmConfig.model_validate(
        {
            "reward_normalisation": normalisation,
            "reward_baseline": baseline,
            "reward_clip": clip,
            "missing_eos_penalty": eos,
            "overlong_penalty": overlong,
        }
    )
    moments, seen = RunningMoments(), []
    for batch in batches:
        rewards = torch.tensor([reward for reward, _, _ in batch], dtype=torch.float32)
        moments = moments.update(rewards)
        seen += [float(reward) for reward in rewards if math.isfinite(reward)]
        samples = [sample(length, reason) for _, length, reason in batch]
        found = shape_rewards(rewards, samples, algorithm, moments, LONGEST)
        for reward, (_, length, reason), score in zip(rewards.tolist(), batch, found.tolist(), strict=True):
            if math.isnan(reward):
                assert score == 0
                continue
            expected = reward - baseline
            if normalisation != "none" and len(seen) > 1:
                deviation = statistics.stdev(seen)
                if normalisation == "whiten":
                    expected -= statistics.fmean(seen)
                if deviation > 1e-6:
                    expected /= deviation
                else:
                    continue
            if clip is not None:
                expected = max(-clip, min(clip, expected))
            if reason != "stop":
                expected -= eos
            if overlong is not None:
                expected -= max(0, length - (LONGEST - overlong[0])) / overlong[0] * overlong[1]
            assert score == pytest.approx(expected, abs=1e-3, rel=1e-3)

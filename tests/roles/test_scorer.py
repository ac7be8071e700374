"""Reward sources as Ray actors: the driver gets the scores of this process's own sources, in order."""

import math

import numpy as np
import pytest
import ray

from rlhf_ray.cluster.connect import connect
from rlhf_ray.cluster.errors import RoleRaised
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.placement import ClusterConfig, GroupConfig
from rlhf_ray.config.rewards import FunctionReward, ModelReward
from rlhf_ray.roles.scorer import RewardSources
from rlhf_ray.scoring.model import ModelScorer
from rlhf_ray.scoring.source import TooManyFailures
from tests.samples import make_sample

pytestmark = pytest.mark.usefixtures("ray_session")

FUNCTION = """
def right(prompts, completions, answer):
    return [None if a is None else float(c == a) for c, a in zip(completions, answer)]

def broken(prompts, completions, **columns):
    raise ValueError("always")
"""
COMPLETIONS = ["好看。", " wonderful and I would watch it again.", "4", "5", "y"]


def sample(index, completion, columns):
    return make_sample(len(completion), "0", index, prompt="这部电影很", response=completion, columns=columns)


def test_sources_together(tiny_reward_model, tmp_path):
    (tmp_path / "rewards.py").write_text(FUNCTION)
    taste = ModelReward(name="taste", path=str(tiny_reward_model), dtype="float32", workers=2, weight=2.0)
    right = FunctionReward(name="right", function=f"{tmp_path}/rewards.py:right", weight=10.0)
    broken = FunctionReward(name="broken", function=f"{tmp_path}/rewards.py:broken")
    harm = FunctionReward(name="harm", function=f"{tmp_path}/rewards.py:right", weight=2.0, measures="cost")
    missing = FunctionReward(name="missing", function=f"{tmp_path}/rewards.py:rihgt")
    samples = [sample(i, c, {"answer": "4"} if i < 3 else {}) for i, c in enumerate(COMPLETIONS)]
    expected = ModelScorer(taste, 4096).score([s.prompt for s in samples], COMPLETIONS, {}).values

    with connect(ClusterConfig(), {"main": GroupConfig(cpus_per_node=2)}) as cluster:
        rewards = RewardSources(cluster, [taste, right], tokens_per_microbatch=64, max_restarts=1)
        rewards.ready()
        scores = rewards.submit(samples).result()
        np.testing.assert_allclose(scores["taste"], expected, atol=1e-5)
        assert scores["right"] == [0.0, 0.0, 1.0, None, None]
        totals = rewards.combine(scores)
        assert totals[2] == pytest.approx(2 * expected[2] + 10, abs=1e-4)
        assert totals[3] == pytest.approx(2 * expected[3], abs=1e-4)
        assert not rewards.shares_devices

        # A copy dies with two batches under way: it is started again once, and both are whole.
        pending = [rewards.submit(samples), rewards.submit(samples[:1])]
        ray.kill(rewards.groups["taste"].handles[0], no_restart=True)
        np.testing.assert_allclose(pending[0].result()["taste"], expected, atol=1e-5)
        np.testing.assert_allclose(pending[1].result()["taste"], expected[:1], atol=1e-5)

        refused = RewardSources(cluster, [broken, harm], tokens_per_microbatch=64, cost_weight=0.5)
        assert refused.combine({"broken": [1.0, math.nan], "harm": [4.0, 4.0]})[0] == 1 - 0.5 * 2 * 4
        assert refused.combine_costs({"broken": [math.nan, 1.0], "harm": [4.0, None]})[0] == 2 * 4
        for _ in range(5):
            scores = refused.submit(samples).result()
            assert all(math.isnan(total) for total in refused.combine(scores)), "a failure is never a zero"
        with pytest.raises(
            TooManyFailures, match=r"reward broken: .* 30 of the last 30 samples(.|\n)*ValueError: always"
        ):
            refused.submit(samples).result()

        with pytest.raises(RoleRaised, match="has no function rihgt; it defines: right, broken") as caught:
            RewardSources(cluster, [missing], tokens_per_microbatch=64).ready()
        assert isinstance(caught.value.__cause__, RlhfError)
        assert caught.value.exit_code == 2

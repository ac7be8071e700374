"""What a run makes of episodes: their rewards, what reward sources read, what people see, and when it stops."""

import math
from typing import Any

import numpy as np
import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.records import Episode, Message, PromptRecord, Sample
from rlhf_ray.jobs.ppo.scoring import failed_episodes, put_rewards, rewards_of
from rlhf_ray.jobs.ppo.step import _row
from rlhf_ray.roles.scorer import answered
from rlhf_ray.rollout.recording import _check_prompts, sample_from_json, sample_to_json
from rlhf_ray.scoring.source import FailureTally, TooManyFailures, combine
from tests.samples import make_sample

ASKED: list[Message] = [{"role": "user", "content": "guess"}]
SAID: list[Message] = [
    {"role": "assistant", "content": "8"},
    {"role": "user", "content": "higher"},
    {"role": "assistant", "content": "12"},
    {"role": "user", "content": "right"},
]


def episode(index: int = 0, **fields: Any) -> Sample:
    made = Episode(**{"turns": SAID, "reward": 1.0} | fields)
    reason = "error" if made.failure else "stop"
    return make_sample(4, 0, index, prompt=ASKED, episode=made, finish_reason=reason, columns={"secret": 12})


FAILED = {"reward": None, "failure": ("hung", "step did not return")}


def test_an_environment_counts_beside_other_sources() -> None:
    samples = [episode(0), episode(1, **FAILED), episode(2, reward=None)]
    put_rewards(samples, {"short": [0.5, 0.5, 0.5]})
    assert samples[0].rewards == {"short": 0.5, "environment": 1.0}
    assert samples[2].rewards == {"short": 0.5, "environment": None}
    sums = combine(rewards_of(samples), {"short": 2.0, "environment": 1.0})
    assert sums[0] == 2.0
    assert math.isnan(sums[1]), "a failure is no zero"
    assert sums[2] == 1.0


def test_a_run_stops_past_a_share_of_failures() -> None:
    tally = FailureTally("rollout.environment", 0.1, 20, work="the environment", setting="failed_episodes")
    tally.add(failed_episodes([episode(i) for i in range(18)] + [episode(i, **FAILED) for i in range(2)]))
    with pytest.raises(TooManyFailures) as raised:
        tally.add(failed_episodes([episode(0, **FAILED) for _ in range(20)]))
    first, second = str(raised.value).splitlines()
    told = "rollout.environment: the environment failed for 20 of the last 20 samples"
    assert first == f"{told}, more than its failed_episodes 0.1 allows:"
    assert second == "  hung: step did not return"


def test_sources_read_the_last_answer_to_all_that_was_said_before() -> None:
    one = answered(episode())
    assert one.prompt == [*ASKED, *SAID[:2]]
    assert one.completion == "12"
    assert one.columns == {"secret": 12, "turns": SAID}
    silent = answered(episode(turns=SAID[1:2], **FAILED))
    assert (silent.prompt, silent.completion) == ([*ASKED, SAID[1]], "")
    plain = make_sample(2, prompt="a", response="b")
    assert (answered(plain).prompt, answered(plain).completion, answered(plain).columns) == ("a", "b", {})


def test_people_see_turns_and_failures() -> None:
    assert _row(episode(), 1.0)["turns"] == SAID
    assert _row(episode(**FAILED), None)["failure"] == "hung: step did not return"
    assert _row(episode(), None)["ended"] == "stop"


@pytest.mark.parametrize("fields", [{}, FAILED, {"turns": [], "reward": 0.0}])
def test_an_episode_comes_back_from_a_file(fields: dict[str, Any]) -> None:
    before = episode(**fields)
    after = sample_from_json(sample_to_json(before))
    assert after.episode == before.episode
    assert after.finish_reason == before.finish_reason
    old = {key: value for key, value in sample_to_json(make_sample(2)).items() if key != "episode"}
    assert sample_from_json(old).episode is None


def test_a_replay_takes_prompts_to_which_the_environment_spoke_first() -> None:
    prompts = [PromptRecord("0", ASKED, np.arange(5, dtype=np.int32))]
    spoken = episode(turns=[{"role": "user", "content": "the board"}, *SAID])
    _check_prompts([spoken], prompts, "here")
    with pytest.raises(BadInput, match="has other tokens in this run"):
        _check_prompts([episode()], prompts, "here")

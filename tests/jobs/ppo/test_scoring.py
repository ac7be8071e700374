"""What is measured of a step's groups, in their order, whoever computes it."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.records import Sample
from rlhf_ray.jobs.ppo import scoring as measuring
from rlhf_ray.jobs.ppo.scoring import PendingScores
from rlhf_ray.jobs.ppo.turns import DeviceTurns
from rlhf_ray.roles.trainer import SharedBatch
from tests.jobs.ppo.colocated import Done
from tests.samples import make_sample

GROUPS, SAMPLES = 5, 3
ORDER = ["rewards", "reference", "policy", "critic"]


class Network:
    """Answers each token with a number of its own and the token's id."""

    def __init__(self, offset: float) -> None:
        self.offset = offset
        self.batches = 0

    def submit_logprobs(self, shared: SharedBatch) -> Done:
        self.batches += 1
        return Done({"logprobs": self.of(shared.batch)})

    def submit_values(self, shared: SharedBatch) -> Done:
        self.batches += 1
        return Done(self.of(shared.batch))

    def of(self, batch: TokenBatch) -> np.ndarray:
        responses = [
            batch.ids[end - length : end] for end, length in zip(batch.offsets[1:], batch.response_lengths, strict=True)
        ]
        return (np.concatenate(responses) + self.offset).astype(np.float32)


def sample(group: int, index: int, length: int) -> Sample:
    random = np.random.default_rng([group, index])
    return make_sample(
        length,
        group,
        index,
        response_ids=random.integers(0, 100, length).astype(np.int32),
        written=random.random(length) < 0.7,
        behaviour_logprobs=-random.random(length).astype(np.float32),
    )


@pytest.mark.parametrize("early", [0, 3, GROUPS])
@pytest.mark.parametrize("adapter_off", [False, True])
@pytest.mark.parametrize("greedy_last", [False, True])
@pytest.mark.parametrize("engine_logprobs", [False, True])
def test_each_sample_has_what_is_its_own(
    greedy_last: bool, engine_logprobs: bool, adapter_off: bool, early: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`early` groups come while the policy learns from another batch: what learns reads them later."""
    monkeypatch.setattr(measuring.SharedBatch, "put", classmethod(lambda cls, batch: cls(batch, None)))
    policy, reference, critic = Network(0.25), Network(0.5), Network(0.75)
    rewards = SimpleNamespace(
        submit=lambda given: Done({"length": [float(len(one.response_ids)) for one in given]}),
        combine=lambda by_source: by_source["length"],
    )
    roles: Any = SimpleNamespace(
        policy=policy,
        critics={"critic": critic},
        submit_reference=reference.submit_logprobs,
        rewards=rewards,
        adapter_off=adapter_off,
        trained={"policy", "critic"},
        turns=DeviceTurns(),
    )
    # Two groups make a chunk, and one is left for the end.
    found = PendingScores(roles, tokens=20, order=ORDER, greedy_last=greedy_last, engine_logprobs=engine_logprobs)
    groups = [[sample(group, index, 1 + (group + index) % 4) for index in range(SAMPLES)] for group in range(GROUPS)]
    for group in groups[:early]:
        found.add(group, early=True)
    assert (policy.batches, critic.batches) == (0, 0)
    assert reference.batches == (0 if adapter_off else early // 2)
    for group in groups[early:]:
        found.add(group)
    samples, measured = found.finish()

    drawn = [one for group in groups for one in (group[:-1] if greedy_last else group)]
    assert samples == drawn
    assert reference.batches == critic.batches == 3, "chunks do not depend on when their groups came"
    assert policy.batches == (0 if engine_logprobs else reference.batches)
    batch = TokenBatch.from_samples(drawn)
    sampled = np.concatenate([one.behaviour_logprobs for one in drawn])
    np.testing.assert_array_equal(measured.logprobs, sampled if engine_logprobs else policy.of(batch))
    assert measured.reference_logprobs is not None
    assert measured.values is not None
    np.testing.assert_array_equal(measured.reference_logprobs, reference.of(batch))
    np.testing.assert_array_equal(measured.values, critic.of(batch))
    assert measured.scores.tolist() == [len(one.response_ids) for one in drawn]
    if greedy_last:
        assert measured.greedy is not None
        rivals = [group[-1] for group in groups for _ in group[:-1]]
        assert measured.greedy.samples == rivals
        assert measured.greedy.rewards.tolist() == [len(one.response_ids) for one in rivals]

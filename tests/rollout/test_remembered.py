"""Finished groups outlive a run: a resumed one takes them and asks for the rest alone."""

from pathlib import Path

import pytest

from rlhf_ray.rollout.interfaces import Group, PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.recording import sample_to_json
from rlhf_ray.rollout.remembered import RememberedSource
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from tests.rollout.fake_engine import FakeEncoder, FakeEngine, prompts


def batch_of(step: int, ids: list[int] | None = None) -> PromptBatch:
    known = prompts(6)
    return PromptBatch([known[i] for i in ids] if ids else known, step, 0, samples_per_prompt=2, seed=5)


class Counting:
    """A pool, and how many prompts it was asked to answer."""

    def __init__(self, pool: RolloutPool) -> None:
        self._pool = pool
        self.asked: list[int] = []

    def run(self, batch: PromptBatch):  # type: ignore[no-untyped-def]
        collection = self._pool.run(batch)
        self.asked.append(collection.progress.groups)
        return collection


@pytest.fixture
def pool():  # type: ignore[no-untyped-def]
    with RolloutPool([FakeEngine()], SingleTurn(FakeEncoder(), Sampling(max_tokens=8)), deadline_seconds=30) as pool:
        yield Counting(pool)


def plain(groups: list[Group]) -> dict[str, list[object]]:
    return {group[0].group_id: [sample_to_json(one) | {"rewards": {}} for one in group] for group in groups}


@pytest.mark.parametrize("taken", [0, 1, 4, 6])
def test_what_came_is_not_asked_for_again(taken: int, pool: Counting, tmp_path: Path) -> None:
    first = RememberedSource(pool, only_whole=False)
    groups = first.run(batch_of(3))
    before = [next(groups) for _ in range(taken)]
    for group in before:
        group[0].rewards = {"a source": 1.0}
    groups.close()
    first.save(str(tmp_path))
    second = RememberedSource(pool, only_whole=False)
    second.load(str(tmp_path))
    after = list(second.run(batch_of(3)))
    assert pool.asked == [6, 6 - taken]
    expected = plain(list(RememberedSource(pool, only_whole=False).run(batch_of(3))))
    assert plain(after) == expected, "the rest is answered from the same seeds"
    assert all(sample.rewards == {} for group in after for sample in group)
    assert {sample.columns["answer"] for group in after for sample in group} == set(range(6))


def test_a_prompt_that_comes_twice_in_a_batch_is_told_apart(pool: Counting) -> None:
    source = RememberedSource(pool, only_whole=False)
    groups = source.run(batch_of(0, [1, 1, 2]))
    first = next(groups)
    groups.close()
    again = list(source.run(batch_of(0, [1, 1, 2])))
    assert [group[0].group_id for group in again].count(first[0].group_id) == 1
    assert {group[0].group_id for group in again} == {"0/1", "0/1/1", "0/2"}


def test_in_deterministic_mode_only_whole_batches_count(pool: Counting) -> None:
    source = RememberedSource(pool, only_whole=True)
    groups = source.run(batch_of(0))
    next(groups)
    groups.close()
    assert len(list(source.run(batch_of(0)))) == 6
    assert len(list(source.run(batch_of(0)))) == 6
    assert pool.asked == [6, 6, 0]


def test_what_was_learned_from_is_forgotten(pool: Counting, tmp_path: Path) -> None:
    source = RememberedSource(pool, only_whole=False)
    for step in (0, 1):
        list(source.run(batch_of(step)))
    source.forget(1)
    source.save(str(tmp_path))
    source.load(str(tmp_path))
    for step in (0, 1):
        list(source.run(batch_of(step)))
    assert pool.asked == [6, 6, 6, 0]
    source.load(None)
    list(source.run(batch_of(1)))
    assert pool.asked[-1] == 6

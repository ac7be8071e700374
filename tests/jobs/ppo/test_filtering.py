"""Groups that say nothing are replaced by further prompts, within a bound and in a fixed order."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ray.data.cursor import Cursor
from rlhf_ray.jobs.ppo.filtering import InformativeGroups
from rlhf_ray.jobs.ppo.step import ROUND_SEEDS
from rlhf_ray.jobs.ppo.turns import DeviceTurns
from rlhf_ray.rollout.interfaces import GroupSource, PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.recording import Recorder, Replay
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from tests.rollout.fake_engine import FakeEncoder, FakeEngine, prompts

WANTED, SAMPLES = 4, 3


class Engines:
    """Answers prompts in the order in which they were sent, and notes what happens."""

    def __init__(self, cursor: Cursor, come: Callable[[], bool] = lambda: False) -> None:
        self.cursor, self.come = cursor, come
        self.rounds: list[list[str]] = []
        self.closed: list[int] = []

    def start(self, number: int, count: int) -> Any:
        assert number == len(self.rounds)
        taken = self.cursor.take(count)
        self.rounds.append(taken)
        groups = [
            [SimpleNamespace(prompt_id=prompt, index=index, rewards={}, episode=None) for index in range(SAMPLES)]
            for prompt in taken
        ]
        return Running(groups, lambda: self.closed.append(number), self.come)


class Running:
    """Groups of which some come later than others."""

    def __init__(self, groups: list[Any], on_close: Any, come: Callable[[], bool] = lambda: False) -> None:
        self._groups, self._come = deque(groups), come
        self.close = on_close

    def __iter__(self) -> Iterator[Any]:
        while self._groups:
            yield self._groups.popleft()

    def poll(self) -> Any:
        return self._groups.popleft() if self._groups and self._come() else None


class Rewards:
    """Equal rewards for the prompts that are `dull`."""

    def __init__(self, dull: set[str], events: list[str] | None = None) -> None:
        self.dull, self.events = dull, events if events is not None else []
        self.submitted = 0

    def submit(self, samples: list[Any]) -> Any:
        self.submitted += len(samples)
        self.events.append(f"score {samples[0].prompt_id}")
        values = [0.5 if sample.prompt_id in self.dull else float(sample.index % 2) for sample in samples]
        return SimpleNamespace(result=lambda: {"reward": values})

    def combine(self, by_source: dict[str, list[float]]) -> list[float]:
        return by_source["reward"]


def filtered(
    cursor: Cursor,
    dull: set[str],
    batches: int = 3,
    *,
    one_by_one: bool = False,
    come: Callable[[], bool] = lambda: False,
) -> tuple[InformativeGroups, Engines]:
    engines, rewards = Engines(cursor, come), Rewards(dull)
    most = WANTED * batches
    groups = InformativeGroups(engines.start, rewards, wanted=WANTED, most=most, one_by_one=one_by_one)  # type: ignore[arg-type]
    return groups, engines


@given(
    dull=st.sets(st.integers(0, 29).map(str)), batches=st.integers(1, 4), one_by_one=st.booleans(), random=st.randoms()
)
def test_as_many_groups_as_wanted_or_as_the_bound_allows(
    dull: set[str], batches: int, one_by_one: bool, random: Random
) -> None:
    """The same prompts, one by one or in rounds, whichever answers come first."""
    cursor = Cursor([str(number) for number in range(30)], seed=0, shuffle=False)
    groups, engines = filtered(cursor, dull, batches, one_by_one=one_by_one, come=lambda: random.random() < 0.5)
    in_rounds, _ = filtered(Cursor([str(number) for number in range(30)], seed=0, shuffle=False), dull, batches)
    kept = sorted((group[0].prompt_id for group in groups), key=int)
    assert kept == [group[0].prompt_id for group in in_rounds]
    if one_by_one:
        assert all(len(sent) == 1 for sent in engines.rounds[1:])
    asked = [prompt for sent in engines.rounds for prompt in sent]
    assert asked == [str(number) for number in range(len(asked))], "in the data's order, each once"
    assert len(asked) <= WANTED * batches
    bright = [prompt for prompt in asked if prompt not in dull]
    if bright:
        assert kept == bright
        assert len(kept) == WANTED or len(asked) == WANTED * batches
        assert {group[0].prompt_id for group in groups.dropped} == set(asked) - set(bright)
    else:
        assert kept == asked[-1:], "the last stands in"
    share = groups.metrics()["frac_reward_zero_std"]
    assert share == pytest.approx(1 - len(bright) / len(asked))
    assert groups.metrics()["filter/prompts"] == len(asked)

    # All that was handed out is finished once: kept and dropped together.
    cursor.finish(kept)
    cursor.finish(group[0].prompt_id for group in groups.dropped)
    assert cursor.in_flight == []


def test_another_prompt_is_sent_while_others_are_written() -> None:
    """Engines need not wait for the longest answer of the batch."""
    engines = Engines(Cursor([str(number) for number in range(9)], seed=0, shuffle=False))
    groups = iter(InformativeGroups(engines.start, Rewards({"0"}), wanted=3, most=9, one_by_one=True))  # type: ignore[arg-type]
    assert next(groups)[0].prompt_id == "1"
    assert engines.rounds == [["0", "1", "2"], ["3"]], "2 has not come"
    assert [group[0].prompt_id for group in groups] == ["2", "3"]


def test_a_resumed_step_asks_for_the_same_prompts_in_the_same_rounds() -> None:
    ids, dull = [str(number) for number in range(20)], {"0", "3", "5"}
    cursor = Cursor(ids, seed=3, shuffle=True)
    before = cursor.state()
    first, engines = filtered(cursor, dull)
    kept = [group[0].prompt_id for group in first]
    for state in (before, cursor.state()):
        again = Cursor(ids, seed=3, shuffle=True)
        again.load(state)
        second, repeated = filtered(again, dull)
        assert [group[0].prompt_id for group in second] == kept
        assert repeated.rounds == engines.rounds


def test_failed_rewards_are_not_compared() -> None:
    class Failing(Rewards):
        def combine(self, by_source: dict[str, list[float]]) -> list[float]:
            return [math.nan, *by_source["reward"][1:]]

    engines = Engines(Cursor([str(number) for number in range(9)], seed=0, shuffle=False))
    groups = InformativeGroups(engines.start, Failing({"1"}), wanted=2, most=2, one_by_one=True)  # type: ignore[arg-type]
    assert [group[0].prompt_id for group in groups] == ["0"], "1 and 0 differ; two equal ones and a failure do not"


def test_a_greedy_response_is_not_compared() -> None:
    class Greedy(Rewards):
        def submit(self, samples: list[Any]) -> Any:
            return SimpleNamespace(result=lambda: {"reward": [1.0] * (len(samples) - 1) + [0.0]})

    engines = Engines(Cursor(["0", "1"], seed=0, shuffle=False))
    groups = InformativeGroups(engines.start, Greedy(set()), wanted=1, most=1, one_by_one=True, greedy_last=True)  # type: ignore[arg-type]
    assert len(list(groups)) == 1
    assert groups.kept == 0


def test_roles_that_share_devices_take_turns() -> None:
    events: list[str] = []

    class Role:
        def __init__(self, name: str) -> None:
            self.name = name

        def wake(self) -> None:
            events.append(f"{self.name} wakes")

        def sleep(self) -> None:
            events.append(f"{self.name} sleeps")

    shared = {"engine": Role("engine"), "rewards": Role("reward")}
    turns = DeviceTurns(shared, {"engine": {"rewards"}, "rewards": {"engine"}}, {"rewards"})
    engines = Engines(Cursor([str(number) for number in range(9)], seed=0, shuffle=False))
    rewards = Rewards({"0"}, events)

    def start(number: int, count: int) -> Any:
        turns.give("engine")
        return engines.start(number, count)

    groups = InformativeGroups(start, rewards, wanted=2, most=6, one_by_one=True, turns=turns)  # type: ignore[arg-type]
    assert [group[0].prompt_id for group in groups] == ["1", "2"]
    assert events == [
        *("engine sleeps", "reward wakes", "score 0", "score 1"),
        *("reward sleeps", "engine wakes", "engine sleeps", "reward wakes", "score 2"),
    ]


def test_rounds_are_recorded_and_replayed_each_by_itself(tmp_path: Path) -> None:
    """Three prompts, so that one that was dropped comes again in a later round, and is answered anew."""
    records = {record.prompt_id: record for record in prompts(3)}
    calls: list[list[str]] = []

    class LengthRewards(Rewards):
        """Equal for the first answers to two of the prompts."""

        def submit(self, samples: list[Any]) -> Any:
            first = samples[0].prompt_id not in self.dull
            self.dull.add(samples[0].prompt_id)
            values = [0.5] * SAMPLES if first and samples[0].prompt_id != "2" else [0.0, *[1.0] * (SAMPLES - 1)]
            return SimpleNamespace(result=lambda: {"reward": values})

    def answered(source: GroupSource) -> list[list[bytes]]:
        cursor = Cursor(list(records), seed=0, shuffle=False)

        def start(number: int, count: int) -> Any:
            taken = cursor.take(count)
            calls.append(taken)
            seed = 7 + ROUND_SEEDS * number
            chosen = [records[prompt] for prompt in taken]
            return source.run(PromptBatch(chosen, step=0, version=1, samples_per_prompt=SAMPLES, seed=seed))

        groups = InformativeGroups(start, LengthRewards(set()), wanted=3, most=9, one_by_one=False)  # type: ignore[arg-type]
        return [[sample.response_ids.tobytes() for sample in group] for group in [*groups, *groups.dropped]]

    turn = SingleTurn(FakeEncoder(), Sampling(max_tokens=6))
    with RolloutPool([FakeEngine()], turn, deadline_seconds=5, deterministic=True) as pool:
        recorded = answered(Recorder(pool, tmp_path / "samples"))
    assert calls == [["0", "1", "2"], ["0", "1"]]
    assert len({ids for group in recorded for ids in group}) > 3 * SAMPLES, "other seeds, other answers"
    assert answered(Replay(tmp_path / "samples")) == recorded


def test_closing_ends_what_runs() -> None:
    groups, engines = filtered(Cursor([str(number) for number in range(9)], seed=0), set())
    next(iter(groups))
    groups.close()
    assert engines.closed == [0]

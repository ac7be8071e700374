"""Episodes: what is trained is what the engine saw and wrote, whatever the turns, limits and deaths."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.records import TURN_REWARDS, Message, PromptRecord, Sample, WeightSpan
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.tiny import build_tokenizer
from rlhf_ray.rollout.environment import Answer, EnvironmentFailed
from rlhf_ray.rollout.episodes import Episodes, TurnLimits, turn_seed
from rlhf_ray.rollout.interfaces import PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.remembered import RememberedSource
from rlhf_ray.rollout.requests import Completion, GenerationRequest, GenerationResult
from rlhf_ray.rollout.single_turn import Sampling
from tests.rollout.fake_engine import FakeEngine

TOKENIZER = build_tokenizer(["guess a number from one to fifteen", "higher, lower, right"], 320)
ENCODER = Encoder(TOKENIZER)
END = ENCODER.eos
PROMPT: list[Message] = [{"role": "user", "content": "guess a number"}]


class Writer(FakeEngine):
    """Writes random tokens, mostly no text's own, and remembers whatever it read and wrote."""

    def __init__(self, rank: int = 0, *, ends: float = 1.0, **how: Any) -> None:
        super().__init__(rank, **how)
        self.ends = ends
        """Share of turns that end by themselves."""
        self.wrote: dict[tuple[bytes, int], Completion] = {}
        """By what it had read, and the seed."""

    def _completion(self, request: GenerationRequest, index: int) -> Completion:
        rng = np.random.default_rng([request.seed, *request.prompt_ids.tolist()])
        length = int(rng.integers(1, 9))
        ids = rng.integers(5, len(TOKENIZER), length).astype(np.int32)
        if stops := bool(rng.random() < self.ends):
            ids[-1] = END
        if cut := length > request.max_tokens or not stops:
            ids = ids[: request.max_tokens]
        logprobs = -rng.exponential(size=len(ids)).astype(np.float32)
        spans = [WeightSpan(0, len(ids), self.version)]
        reason = "length" if cut else "stop"
        completion = Completion(index, ids, logprobs, reason, spans)  # type: ignore[arg-type]
        self.wrote[request.prompt_ids.tobytes(), request.seed] = completion
        return completion


class Script:
    """Environments whose answers depend on what was said alone; they fail where they are told to."""

    gives_rewards = True
    tools: Sequence[dict[str, Any]] = ()

    def __init__(self, *, turns: int = 3, fails_at: int | None = None, opening: Sequence[Message] = ()) -> None:
        self.turns, self.fails_at, self.opening = turns, fails_at, opening
        self.open_now = self.opened = 0
        self.heard: list[list[Message]] = []
        self.seeds: list[int] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator["Played"]:
        self.open_now += 1
        self.opened += 1
        try:
            yield Played(self)
        finally:
            self.open_now -= 1


class Played:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.said: list[Message] = []
        script.heard.append(self.said)

    async def reset(self, prompt: PromptRecord, seed: int) -> Sequence[Message]:
        await asyncio.sleep(0)
        self.script.seeds.append(seed)
        if self.script.fails_at == -1:
            raise EnvironmentFailed("died", "gone before it began")
        return self.script.opening

    async def step(self, turn: Message) -> Answer:
        for _ in range(hash(turn["content"]) % 3):
            await asyncio.sleep(0)
        if self.script.fails_at == len(self.said):
            raise EnvironmentFailed("raised", "division by zero")
        self.said.append(turn)
        number = len(self.said)
        text = f"{number}. you said {len(turn['content'])}: {turn['content'][:3]}"
        return Answer([{"role": "user", "content": text}], 0.5 * number, number >= self.script.turns)


def prompts(count: int) -> list[PromptRecord]:
    ids = ENCODER.prompt(PROMPT)
    return [PromptRecord(str(i), PROMPT, ids, {"secret": i}) for i in range(count)]


def play(
    engines: Sequence[FakeEngine],
    script: Script,
    *,
    count: int = 2,
    samples: int = 2,
    whole: int = 200,
    deterministic: bool = False,
    greedy_last: bool = False,
    **limits: Any,
) -> list[list[Sample]]:
    rules = TurnLimits(**{"max_turns": 8, "max_prompt_tokens": 64} | limits)
    episodes = Episodes(script, ENCODER, Sampling(max_tokens=whole), rules, together=deterministic)
    reborn = iter(range(99))
    with RolloutPool(
        engines,
        episodes,
        deadline_seconds=30,
        deterministic=deterministic,
        restore=lambda rank, _: type(engines[0])(rank, shuffle=next(reborn)),
    ) as pool:
        batch = PromptBatch(prompts(count), 3, 1, samples_per_prompt=samples, seed=7, greedy_last=greedy_last)
        return sorted(pool.run(batch), key=lambda group: group[0].prompt_id)


def turns_of(sample: Sample) -> list[tuple[int, int]]:
    """Where the policy's turns begin and end in the response."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], sample.written.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def check_against(sample: Sample, wrote: dict[tuple[bytes, int], Completion]) -> None:
    """Each written stretch is what an engine wrote behind what stands before it; nothing else is written."""
    whole = np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int32)
    spans = []
    seed = sample.seed - sample.index
    for number, (start, end) in enumerate(turns_of(sample)):
        before = whole[: len(sample.prompt_ids) + start]
        completion = wrote[before.tobytes(), turn_seed(seed, sample.index, number)]
        assert np.array_equal(completion.token_ids, sample.response_ids[start:end])
        assert np.array_equal(completion.logprobs, sample.behaviour_logprobs[start:end])
        spans.append((start, end))
    assert [(span.start, span.end) for span in sample.weight_versions] == spans
    assert not sample.behaviour_logprobs[~sample.written].any()


@settings(max_examples=80, deadline=None)
@given(
    turns=st.integers(1, 5),
    max_turns=st.integers(1, 5),
    max_turn_tokens=st.none() | st.integers(1, 8),
    whole=st.integers(1, 120),
    ends=st.sampled_from([1.0, 0.7]),
    deaths=st.lists(st.none() | st.integers(0, 8), min_size=1, max_size=3),
    deterministic=st.booleans(),
)
def test_trained_tokens_are_those_that_the_engines_saw_and_wrote(
    turns: int,
    max_turns: int,
    max_turn_tokens: int | None,
    whole: int,
    ends: float,
    deaths: list[int | None],
    deterministic: bool,
) -> None:
    wrote: dict[tuple[bytes, int], Completion] = {}

    class Recorded(Writer):
        def __init__(self, rank: int = 0, **how: Any) -> None:
            super().__init__(rank, ends=ends, **how)
            self.wrote = wrote

    script = Script(turns=turns)
    engines = [Recorded(i, dies_after=after, shuffle=i) for i, after in enumerate(deaths)]
    groups = play(
        engines,
        script,
        whole=whole,
        deterministic=deterministic,
        max_turns=max_turns,
        max_turn_tokens=max_turn_tokens,
    )
    assert [group[0].prompt_id for group in groups] == ["0", "1"]
    assert script.open_now == 0
    for sample in (sample for group in groups for sample in group):
        check_against(sample, wrote)
        assert len(sample.response_ids) <= whole
        assert sample.episode is not None
        own = [turn for turn in sample.episode.turns if turn["role"] == "assistant"]
        assert len(own) == len(turns_of(sample)) <= max_turns
        assert all(end - start <= (max_turn_tokens or whole) for start, end in turns_of(sample))
        answered = len(sample.episode.turns) - len(own)
        assert answered in (len(own), len(own) - (sample.finish_reason == "length"))
        assert sample.finish_reason in ("stop", "length", "turns")
        assert (sample.finish_reason == "stop") == (answered == turns)
        assert sample.written[-1], "nothing stands behind the policy's last word"
        rewards = sample.extras[TURN_REWARDS]
        assert sample.episode.reward == rewards.sum() == sum(0.5 * n for n in range(1, answered + 1))
        ends_of_turns = {end - 1 for _, end in turns_of(sample)}
        assert set(np.flatnonzero(rewards).tolist()) <= ends_of_turns


def test_what_deaths_leave_is_what_a_healthy_engine_gives() -> None:
    healthy = play([Writer()], Script())
    for deterministic in (False, True):
        broken = play([Writer(0, dies_after=3), Writer(1, dies_after=2)], Script(), deterministic=deterministic)
        assert [[signature(s) for s in group] for group in broken] == [[signature(s) for s in g] for g in healthy]


def signature(sample: Sample) -> tuple[object, ...]:
    ids, logprobs = sample.response_ids.tobytes(), sample.behaviour_logprobs.tobytes()
    return sample.group_id, sample.index, sample.seed, ids, logprobs, sample.finish_reason, sample.response


def test_an_engines_death_repeats_the_turn_and_not_the_episode() -> None:
    script = Script(turns=4)
    play([Writer(0, dies_after=5), Writer(1)], script, count=1)
    assert script.opened == 2, "one environment for each of two samples"
    assert sorted(len(heard) for heard in script.heard) == [4, 4]


def test_an_engine_that_dies_between_two_turns_is_asked_back() -> None:
    """It has answered all that it was asked for when it dies, so that no request fails by its death."""
    for dies_after in (1, 2, 3):
        [group] = play([Writer(dies_after=dies_after)], Script(turns=4), count=1, samples=1)
        assert group[0].finish_reason == "stop"


def test_in_deterministic_mode_it_repeats_the_episodes_of_its_queue() -> None:
    script = Script(turns=4)
    play([Writer(0, dies_after=5)], script, count=1, deterministic=True)
    assert script.opened == 4


def test_requests_of_deterministic_mode_do_not_depend_on_the_pace_of_environments() -> None:
    calls = []
    for pace in range(3):

        class Paced(Played):
            async def step(self, turn: Message, pace: int = pace) -> Answer:
                for _ in range((pace * len(turn["content"])) % 7):
                    await asyncio.sleep(0)
                return await super().step(turn)

        class Slow(Script):
            @asynccontextmanager
            async def open(self, kind: type[Played] = Paced) -> AsyncIterator[Played]:
                yield kind(self)

        engine = Writer()
        play([engine], Slow(turns=3), count=3, deterministic=True)
        calls.append([[request.request_id for request in call] for call in engine.calls])
    assert calls[0] == calls[1] == calls[2]
    assert [len(call) for call in calls[0]] == [6, 6, 6]


def test_a_text_that_does_not_survive_re_encoding_stays_as_it_was_written() -> None:
    [group] = play([Writer()], Script(turns=4), count=1, samples=8)
    changed = 0
    for sample in group:
        for start, end in turns_of(sample):
            ids = sample.response_ids[start:end]
            again = TOKENIZER(TOKENIZER.decode(ids), add_special_tokens=False)["input_ids"]
            changed += again != ids.tolist()
    assert changed > 10, "or the test says nothing"


def test_between_turns_stands_what_the_template_puts_there() -> None:
    [group] = play([Writer()], Script(turns=2), count=1, samples=1)
    [sample] = group
    (_, first), (second, _) = turns_of(sample)
    assert sample.episode is not None
    heard = sample.episode.turns[1]["content"]
    assert TOKENIZER.decode(sample.response_ids[first:second]) == f"<|user|>{heard}<|end|><|assistant|>"
    assert TOKENIZER.decode(sample.response_ids).startswith(TOKENIZER.decode(sample.response_ids[:first]))


def test_a_turn_that_is_cut_is_not_shown_to_the_environment() -> None:
    script = Script(turns=4)
    [group] = play([Writer(ends=0.0)], script, count=1, samples=1)
    assert group[0].finish_reason == "length"
    assert script.heard == [[]]
    assert group[0].episode is not None
    assert group[0].episode.reward == 0.0, "it took no turn to its end: that earns nothing, which is known"


@pytest.mark.parametrize("fails_at", [-1, 0, 2])
def test_an_environment_that_fails_leaves_a_sample_without_reward(fails_at: int) -> None:
    [group] = play([Writer()], Script(turns=4, fails_at=fails_at), count=1, samples=2)
    for sample in group:
        assert sample.finish_reason == "error"
        assert sample.episode is not None
        assert sample.episode.reward is None
        assert sample.episode.failure in (("raised", "division by zero"), ("died", "gone before it began"))
        assert len(sample.response_ids) == len(sample.written) > 0
        assert bool(sample.written.any()) == (fails_at >= 0)


def test_what_reset_says_stands_behind_the_prompt() -> None:
    opening: list[Message] = [{"role": "user", "content": "the board"}]
    [group] = play([Writer()], Script(opening=opening), count=1)
    for sample in group:
        assert np.array_equal(sample.prompt_ids, ENCODER.prompt([*PROMPT, *opening]))
        assert sample.episode is not None
        assert sample.episode.turns[0] == opening[0]


def test_what_reset_says_may_be_too_long() -> None:
    opening: list[Message] = [{"role": "user", "content": "the board" * 20}]
    [group] = play([Writer()], Script(opening=opening), count=1, samples=1)
    assert group[0].episode is not None
    assert "more than data.max_prompt_tokens, 64" in str(group[0].episode.failure)


def test_all_episodes_of_a_prompt_begin_alike_and_are_written_apart() -> None:
    script = Script()
    groups = play([Writer()], script, count=2, samples=3)
    assert len(set(script.seeds)) == 2
    assert len({sample.response_ids.tobytes() for group in groups for sample in group}) == 6


def test_the_last_of_a_group_is_greedy_where_it_is_asked_for() -> None:
    engine = Writer()
    play([engine], Script(turns=2), count=1, samples=3, greedy_last=True)
    asked = {(r.request_id.split("/")[-2], r.temperature) for call in engine.calls for r in call}
    assert asked == {("0", 1.0), ("1", 1.0), ("2", 0.0)}


def test_a_template_that_ends_no_turn_is_refused() -> None:
    tokenizer = build_tokenizer(["a"], 300)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(BadInput, match="a token ends each turn of the assistant"):
        Episodes(Script(), Encoder(tokenizer), Sampling(max_tokens=9), TurnLimits(2, 9))


def test_messages_that_the_template_refuses_fail_the_episode() -> None:
    class Odd(Played):
        async def step(self, turn: Message) -> Answer:
            return Answer([{"role": "tool", "content": "4", "tool_calls": [{"function": {"name": "x"}}]}], 0.0, False)

    class Odds(Script):
        @asynccontextmanager
        async def open(self) -> AsyncIterator[Played]:
            yield Odd(self)

    [group] = play([Writer()], Odds(), count=1, samples=1)
    assert group[0].episode is not None
    assert "step returned messages that cannot be read" in str(group[0].episode.failure)


def test_an_engine_that_answers_otherwise_than_asked_ends_the_step() -> None:
    class Doubled(Writer):
        def _result(self, request: GenerationRequest) -> GenerationResult:
            return GenerationResult(request.request_id, [self._completion(request, i) for i in range(2)])

    with pytest.raises(Exception, match=r"returned completions \[0, 1\], but 1 were asked for"):
        play([Doubled()], Script())


CALLS = (
    "{% for t in tools or [] %}{{ '<|system|>' + t['function']['name'] + '<|end|>' }}{% endfor %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] or '') }}"
    "{% for c in m['tool_calls'] or [] %}{{ '<tool_call>' + (c['function'] | tojson) + '</tool_call>' }}{% endfor %}"
    "{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SAID = (
    '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><tool_call>{"name": "add"}</tool_call>',
    "<tool_call>add",
    "3",
)


RESPONSE_TEMPLATE = {
    "start_anchor": "<|assistant|>",
    "fields": {
        "content": {"close": "<|end|>"},
        "tool_calls": {"open": "<tool_call>", "close": "</tool_call>", "content": "json", "repeats": True},
    },
}


@pytest.mark.parametrize("form", ["template", "response_template"])
def test_calls_of_tools_reach_the_environment_and_results_the_policy(form: str) -> None:
    tokenizer = build_tokenizer(["add"], 330)
    tokenizer.chat_template = CALLS
    if form == "response_template":
        tokenizer.response_template = RESPONSE_TEMPLATE
    encoder = Encoder(tokenizer)
    schema = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}

    class Adds(Played):
        async def step(self, turn: Message) -> Answer:
            self.said.append(turn)
            calls = turn.get("tool_calls", [])
            results: Any = [
                {"role": "tool", "name": "add", "tool_call_id": one["id"], "content": f"r{place}"}
                for place, one in enumerate(calls)
            ]
            return Answer(results, 0.0, not calls)

    class Tools(Script):
        gives_rewards = False
        tools = (schema,)

        @asynccontextmanager
        async def open(self) -> AsyncIterator[Played]:
            yield Adds(self)

    class Says(FakeEngine):
        def _completion(self, request: GenerationRequest, index: int) -> Completion:
            text = SAID[int(request.request_id.rsplit("/", 1)[1])]
            ids = np.array([*tokenizer(text, add_special_tokens=False)["input_ids"], encoder.eos], np.int32)
            logprobs = np.full(len(ids), -1, np.float32)
            return Completion(index, ids, logprobs, "stop", [WeightSpan(0, len(ids), 1)])

    script = Tools()
    rollout = Episodes(script, encoder, Sampling(max_tokens=300), TurnLimits(4, 64))
    with RolloutPool([Says()], rollout, deadline_seconds=30) as pool:
        asked: Any = [{**PROMPT[0], "tools": [schema]}]
        record = PromptRecord("0", asked, encoder.prompt(asked))
        [[sample]] = list(pool.run(PromptBatch([record], 3, 1, samples_per_prompt=1, seed=7)))
    first, second, third = script.heard[0]
    assert [call["function"] for call in first["tool_calls"]] == [
        {"name": "add", "arguments": {"a": 1}},
        {"name": "add", "arguments": {}},
    ]
    assert third == {"role": "assistant", "content": "3"}
    assert sample.episode is not None
    assert sample.episode.reward is None
    assert sample.finish_reason == "stop"
    whole = tokenizer.decode(sample.response_ids)
    assert f"{SAID[0]}<|end|><|tool|>r0<|end|><|tool|>r1<|end|><|assistant|>" in whole
    assert sample.written.sum() == sum(len(tokenizer(text, add_special_tokens=False)["input_ids"]) + 1 for text in SAID)
    assert second["tool_calls"][0]["function"]["name"] == "", "what cannot be read is a call all the same"


def test_finished_episodes_of_batches_under_way_come_back_from_a_checkpoint(tmp_path: Path) -> None:
    """With staleness a batch is written while the policy learns; what had come of it is not played again."""
    script = Script(turns=2)
    episodes = Episodes(script, ENCODER, Sampling(max_tokens=200), TurnLimits(8, 64))
    batch = PromptBatch(prompts(3), 3, 1, samples_per_prompt=2, seed=7)
    with RolloutPool([Writer()], episodes, deadline_seconds=30) as pool:
        memory = RememberedSource(pool, only_whole=False)
        groups = memory.run(batch)
        first = [next(groups), next(groups)]
        groups.close()
        memory.save(str(tmp_path))
        resumed = RememberedSource(pool, only_whole=False)
        resumed.load(str(tmp_path))
        opened = script.opened
        again = list(resumed.run(batch))
    assert script.opened - opened == 2, "only the third prompt is played"
    assert [list(map(signature, group)) for group in again[:2]] == [list(map(signature, group)) for group in first]
    for before, after in zip(first, again, strict=False):
        assert [sample.episode for sample in after] == [sample.episode for sample in before]
        assert all(
            np.array_equal(a.extras[TURN_REWARDS], b.extras[TURN_REWARDS]) for a, b in zip(before, after, strict=True)
        )

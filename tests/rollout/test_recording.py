"""Recording: bit-exact round trip, steps that count only when whole, clear errors where a replay does not fit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.data.records import PromptRecord, Sample, WeightSpan
from rlhf_ray.rollout.interfaces import GroupSource, PromptBatch
from rlhf_ray.rollout.pool import RolloutPool
from rlhf_ray.rollout.recording import Recorder, Replay, record_line, sample_from_json, sample_to_json
from rlhf_ray.rollout.single_turn import Sampling, SingleTurn
from tests.rollout.fake_engine import FakeEncoder, FakeEngine, prompts


def exactly(sample: Sample) -> dict[str, Any]:
    """All fields, arrays by type and bytes."""

    def freeze(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return value.dtype.str, value.shape, value.tobytes()
        if isinstance(value, float):
            return value.hex()
        if isinstance(value, dict):
            return {name: freeze(item) for name, item in value.items()}
        return value

    return {field.name: freeze(getattr(sample, field.name)) for field in dataclasses.fields(sample)}


def collect(source: GroupSource, step: int, count: int = 4, **changes: Any) -> list[list[Sample]]:
    arguments: dict[str, Any] = {"version": 1, "samples_per_prompt": 2, "seed": 7} | changes
    return list(source.run(PromptBatch(arguments.pop("prompts", prompts(count)), step=step, **arguments)))


@pytest.fixture
def pool() -> Any:
    with RolloutPool([FakeEngine()], SingleTurn(FakeEncoder(), Sampling(max_tokens=6)), deadline_seconds=30) as made:
        yield made


texts = st.text(st.characters(exclude_categories=[]))
floats = hnp.arrays(np.float32, 5, elements=st.floats(width=32, allow_nan=False))


@given(texts, floats, hnp.arrays(np.float64, 5, elements=st.floats(allow_nan=False)), hnp.arrays(bool, 5), st.data())
def test_a_sample_comes_back_bit_for_bit(
    text: str, logprobs: np.ndarray, extra: np.ndarray, written: np.ndarray, data: st.DataObject
) -> None:
    sample = Sample(
        prompt_id="a",
        group_id="0/a",
        index=1,
        attempt=2,
        seed=2**62 - 1,
        prompt=data.draw(st.just(text) | st.just([{"role": "user", "content": text}])),
        response=text,
        prompt_ids=np.arange(3, dtype=np.int32),
        response_ids=np.arange(5, dtype=np.int32),
        written=written,
        behaviour_logprobs=logprobs,
        weight_versions=[WeightSpan(0, 2, 1), WeightSpan(2, 5, 2)],
        finish_reason="length",
        rewards={"a": None, "b": float(extra[0])},
        extras={"double": extra, "flags": written, "ids": np.arange(5)},
        columns={"label": text, "scores": [1, 2.5, None]},
    )
    line = record_line(sample_to_json(sample), "here")
    assert line.count(b"\n") == 1
    assert exactly(sample_from_json(json.loads(line))) == exactly(sample)


def test_infinite_log_probabilities_survive() -> None:
    values = np.array([-np.inf, -0.0, np.float32(1e-45)], np.float32)
    line = record_line({"values": values.tolist()}, "here")
    assert np.array(json.loads(line)["values"], np.float32).tobytes() == values.tobytes()


def test_what_was_recorded_is_replayed_in_the_same_order(pool: RolloutPool, tmp_path: Path) -> None:
    path = tmp_path / "new" / "samples.jsonl"
    recorder = Recorder(pool, path)
    recorded = {step: collect(recorder, step) for step in (0, 1)}
    expected = {step: [[exactly(s) for s in group] for group in groups] for step, groups in recorded.items()}
    recorded[0][0][0].rewards["later"] = 1.0
    replay = Replay(path)
    for step in (1, 0, 1):
        assert [[exactly(s) for s in group] for group in collect(replay, step)] == expected[step]


def test_a_step_counts_only_when_whole_and_the_last_time_it_was_done(pool: RolloutPool, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    recorder = Recorder(pool, path)
    collect(recorder, 0)
    whole = path.stat().st_size
    left = recorder.run(PromptBatch(prompts(3), step=1, version=1, samples_per_prompt=1, seed=7))
    next(left)
    left.close()
    assert list(left) == []
    assert path.stat().st_size == whole
    collect(recorder, 1)
    content = path.read_bytes()
    for cut in range(whole, len(content), 37):
        path.write_bytes(content[:cut])
        with pytest.raises(BadInput, match=r"no step 1 with seed 7; its steps: 0 \(seed 7\)"):
            collect(Replay(path), 1)
        again = Recorder(pool, path)
        assert path.stat().st_size == whole
    collect(again, 0, count=2)
    collect(again, 1)
    assert len(collect(Replay(path), 0, count=2)) == 2
    assert len(collect(Replay(path), 1)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 5}, r"has no step 5 with seed 7; its steps: 0 \(seed 7\)"),
        ({"seed": 8}, "has no step 0 with seed 8"),
        ({"count": 3}, "was recorded with 4 prompts, this run asks for 3"),
        ({"prompts": prompts(4, start=1)}, "with prompt 0 at position 0, this run asks for prompt 1"),
        ({"samples_per_prompt": 1}, "with samples_per_prompt 2, this run asks for 1"),
        ({"version": 2}, "with version 1, this run asks for 2"),
    ],
)
def test_a_replay_that_does_not_fit_says_why(
    pool: RolloutPool, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = tmp_path / "samples.jsonl"
    collect(Recorder(pool, path), 0)
    with pytest.raises(BadInput, match=message):
        collect(Replay(path), **{"step": 0} | changes)


def test_a_replay_with_another_tokenizer_says_so(pool: RolloutPool, tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    collect(Recorder(pool, path), 0)
    other = [PromptRecord(p.prompt_id, p.prompt, p.prompt_ids + 1, p.columns) for p in prompts(4)]
    with pytest.raises(BadInput, match=r"prompt . has other tokens in this run"):
        collect(Replay(path), 0, prompts=other)


def test_other_files_are_neither_read_nor_cut(pool: RolloutPool, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"prompt": "hello"}\n')
    for use in (lambda: Replay(path), lambda: Recorder(pool, path)):
        with pytest.raises(BadInput, match="not a recording of samples; name another file"):
            use()
    assert path.read_text() == '{"prompt": "hello"}\n'
    with pytest.raises(BadInput, match="there is no file"):
        Replay(tmp_path / "missing.jsonl")
    with pytest.raises(BadInput, match="cannot write to"):
        Recorder(pool, path / "below" / "a" / "file")


def test_a_full_disk_ends_the_run_and_leaves_whole_steps(
    pool: RolloutPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "samples.jsonl"
    recorder = Recorder(pool, path)
    collect(recorder, 0)
    whole = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RlhfError, match=r"rollout.record: cannot write to .*: No space left on device"):
        collect(recorder, 1)
    assert path.read_bytes() == whole


def test_columns_that_json_cannot_hold_are_named(pool: RolloutPool, tmp_path: Path) -> None:
    odd = [PromptRecord("17", "text", np.array([1], np.int32), {"image": {1, 2}})]
    with pytest.raises(
        BadInput, match=r"prompt 17: Object of type set is not JSON serializable; leave that column out"
    ):
        collect(Recorder(pool, tmp_path / "samples.jsonl"), 0, prompts=odd)

import numpy as np
import pytest

from rlhf_ray.models.logit_size import LogitSize
from rlhf_ray.transfer.errors import SyncMismatch
from rlhf_ray.transfer.verification import (
    NATURAL_TOKENS,
    PROBE_ROWS,
    PROBE_TOKENS,
    HeldWeights,
    Tolerance,
    WeightComparison,
    compare_scores,
    probe_sequences,
    sync_timings,
)

LARGE = LogitSize(largest=30.0, usual=6.0)
SENT = {"layers.0.q": 1, "layers.0.k": 2, "layers.1.q": 4, "embedding": 8}
HELD = {"layers.0.qk": 3, "layers.1.qk": 4, "embedding": 8}


def test_probe_is_the_same_on_every_call_and_within_the_vocabulary():
    first, second = probe_sequences(300), probe_sequences(300)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    ids = np.concatenate(first)
    assert len(ids) == PROBE_ROWS * PROBE_TOKENS
    assert ids.min() >= 0
    assert ids.max() < 300
    assert len(set(ids.tolist())) > 100


def test_probe_takes_natural_texts_and_keeps_to_the_lengths():
    random = [20] * PROBE_ROWS
    probes = probe_sequences(300, [np.arange(5), np.arange(100), np.arange(1)], max_tokens=20)
    assert [len(ids) for ids in probes] == [*random, 5, 20]
    probes = probe_sequences(300, [np.arange(200)] * 9)
    assert sum(len(ids) for ids in probes[PROBE_ROWS:]) == NATURAL_TOKENS


def test_equal_scores_pass_and_give_the_difference():
    scores, engine = [np.array([-1.0, -2.0]), np.array([-3.0])], [np.array([-1.0, -2.0000003]), np.array([-3.0])]
    tolerance = Tolerance.of("float32", LogitSize())
    found = compare_scores(scores, engine, tolerance, dtype="float32", version=3)
    assert (found.largest, found.mean) == (pytest.approx(3e-7, rel=0.01), pytest.approx(1e-7, rel=0.01))


@pytest.mark.parametrize("shift", [0.2, 0.1])
def test_what_is_allowed_follows_the_logits(shift: float):
    small, large = (Tolerance.of("bfloat16", size) for size in (LogitSize(3.0, 0.7), LARGE))
    scores = [np.zeros(100)]
    compare_scores(scores, [scores[0] + shift], large, dtype="bfloat16", version=1)
    with pytest.raises(SyncMismatch):
        compare_scores(scores, [scores[0] + shift], small, dtype="bfloat16", version=1)


def test_one_large_difference_and_many_small_ones_are_judged_apart():
    tolerance, scores = Tolerance.of("bfloat16", LARGE), [np.zeros(100)]
    one = np.zeros(100)
    one[7] = tolerance.largest * 0.9
    compare_scores(scores, [one], tolerance, dtype="bfloat16", version=1)
    one[7] = tolerance.largest * 1.1
    for other in (one, scores[0] + 1.1 * tolerance.mean):
        with pytest.raises(SyncMismatch):
            compare_scores(scores, [other], tolerance, dtype="bfloat16", version=1)


def test_a_limit_of_the_users_own_moves_the_mean_along():
    usual, own = Tolerance.of("bfloat16", LARGE), Tolerance.of("bfloat16", LARGE, 10.0)
    assert own.largest == 10.0
    assert own.mean / usual.mean == pytest.approx(10.0 / usual.largest)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("side", ["trainer", "engine"])
def test_what_is_not_a_number_stops_the_run(value: float, side: str):
    scores, other = [np.array([-1.0, -2.0])], [np.array([-1.0, value])]
    pair = (other, scores) if side == "trainer" else (scores, other)
    with pytest.raises(SyncMismatch, match=r"version 3: rollout engine 1 .* by inf in the mean"):
        compare_scores(*pair, Tolerance(100.0, 100.0), dtype="bfloat16", version=3, engine_index=1)
    with pytest.raises(SyncMismatch):
        compare_scores(
            scores, other, Tolerance.of("bfloat16", LogitSize(1.0, float("nan"))), dtype="bfloat16", version=3
        )


def held(stored: dict[str, int], received: dict[str, int] | None = None, stale: list[str] | None = None) -> HeldWeights:
    return HeldWeights([received or {}], [stored], [stale or []])


def test_the_bits_of_all_layers_are_compared():
    comparison = WeightComparison("float32")
    comparison.check(SENT, {0: held(HELD), 1: held(HELD)}, 1)
    assert comparison.share == 1
    with pytest.raises(SyncMismatch, match="engine 1 does not hold the trainer's weights: layer 0 hold other weights"):
        comparison.check(SENT, {0: held(HELD), 1: held(HELD | {"layers.0.qk": 4})}, 2)
    comparison.check(SENT, {0: held(HELD), 1: held(HELD)}, 3)


def test_layers_that_an_engine_holds_in_another_form_are_left_out():
    comparison = WeightComparison("float32")
    packed = held(HELD | {"layers.1.qk": 77})
    comparison.check(SENT, {0: packed}, 1)
    assert comparison.share == pytest.approx(2 / 3)
    comparison.check(SENT | {"layers.1.q": 5}, {0: packed}, 2)
    with pytest.raises(SyncMismatch, match="outside of the layers hold other weights"):
        comparison.check(SENT | {"embedding": 9}, {0: packed}, 3)


@pytest.mark.parametrize("received", [SENT | {"layers.0.k": 7}, {"layers.9.q": 1}])
def test_what_arrived_is_compared_tensor_by_tensor(received: dict[str, int]):
    with pytest.raises(SyncMismatch, match=r"layers.[09].[kq] did not arrive as they were sent"):
        WeightComparison("float32").check(SENT, {0: held(HELD, received)}, 1)


def test_a_layer_that_computes_with_something_else_is_named():
    with pytest.raises(SyncMismatch, match="lm_head are computed with other weights than came"):
        WeightComparison("float32").check(SENT, {0: held(HELD, stale=["lm_head"])}, 1)


def test_parts_of_a_sync_are_those_of_the_sender_and_of_the_slowest_engine():
    slow = {"pause": 0.6, "wire": 0.9, "load": 0.5, "receive": 2.0}
    fast = {"pause": 0.7, "wire": 0.2, "load": 0.1, "receive": 1.0}
    parts = sync_timings({"gather": 0.4, "send": 1.0}, [fast, slow])
    assert parts == {"gather": 0.4, "send": 1.0, "load": 0.5, "pause": 0.6}

"""The data cursor: nothing twice, nothing lost, and a resumed run sees what an uninterrupted one would have."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.cursor import Cursor, Passes

IDS = [str(number) for number in range(7)]


@settings(deadline=None)
@given(
    rows=st.integers(1, 12),
    takes=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
)
def test_each_epoch_gives_each_row_once(rows, takes, seed, shuffle):
    cursor = Cursor([str(row) for row in range(rows)], seed, shuffle)
    stream = [row for count in takes for row in cursor.take(count)]
    assert len(stream) == sum(takes)
    for start in range(0, len(stream) - rows + 1, rows):
        assert set(stream[start : start + rows]) == set(map(str, range(rows)))
    assert cursor.in_flight == stream


def test_epochs_differ_in_order_and_seeds_too():
    cursor = Cursor(IDS * 1 + [f"x{n}" for n in range(20)], 0)
    first, second = cursor.take(27), cursor.take(27)
    assert sorted(first) == sorted(second)
    assert first != second
    assert first != Cursor(IDS * 1 + [f"x{n}" for n in range(20)], 1).take(27)
    assert Cursor(IDS, 0, shuffle=False).take(9) == [*IDS, "0", "1"]


operations = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 5)),
        st.tuples(st.just("finish"), st.integers(0, 6)),
        st.tuples(st.just("resume"), st.just(0)),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=200)
@given(operations=operations, seed=st.integers(0, 5))
def test_conservation_through_any_history(operations, seed):
    """Whatever happens in between: each row of each epoch is finished or in flight, exactly once."""
    cursor = Cursor(IDS, seed)
    finished: Counter[str] = Counter()
    working: list[str] = []
    for name, number in operations:
        if name == "take":
            working += cursor.take(number)
        elif name == "finish" and number < len(working):
            row = working.pop(number)
            cursor.finish([row])
            finished[row] += 1
        elif name == "resume":
            state = json.loads(json.dumps(cursor.state()))
            cursor = Cursor(IDS, seed)
            cursor.load(state)
            assert cursor.in_flight == state["in_flight"]
            working = cursor.take(len(state["in_flight"])) if state["in_flight"] else []
            assert working == state["in_flight"]
    epochs = int(cursor.epoch)
    for row in IDS:
        seen = finished[row] + working.count(row)
        assert epochs <= seen <= epochs + 1


@given(before=st.lists(st.integers(1, 5), max_size=8), after=st.lists(st.integers(1, 5), min_size=1, max_size=8))
def test_resume_gives_the_same_rows(before, after):
    whole = Cursor(IDS, 3)
    for count in before:
        whole.finish(whole.take(count))
    state = json.loads(json.dumps(whole.state()))
    expected = [whole.take(count) for count in after]
    resumed = Cursor(IDS, 3)
    resumed.load(state)
    assert [resumed.take(count) for count in after] == expected


def test_refuses_a_state_of_other_data():
    state = Cursor(IDS, 0, fingerprint="a").state()
    with pytest.raises(BadInput, match="the data has changed since the checkpoint"):
        Cursor(IDS, 0, fingerprint="b").load(state)
    with pytest.raises(BadInput, match="7 rows then, 2 now"):
        Cursor(IDS[:2], 0, fingerprint="a").load(state)


@pytest.mark.parametrize(
    ("rows", "epochs", "batch", "sizes"),
    [(10, 1, 4, [4, 4, 2]), (10, 0.5, 4, [4, 1]), (10, 1.5, 5, [5, 5, 5]), (3, 2, 8, [6]), (10, 0.01, 4, [1])],
)
def test_passes(rows, epochs, batch, sizes):
    passes = Passes(rows, epochs, batch)
    assert [passes.rows_of(step) for step in range(passes.steps)] == sizes

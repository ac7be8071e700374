"""Pairs of clips in a store: each judged once, nothing lost, by one or several, and at the page."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.feedback.app.session import seat
from rlhf_ray.feedback.clips.clips import CHOICES, Clips
from rlhf_ray.feedback.clips.desk import ClipDesk, ClipSettings
from rlhf_ray.feedback.clips.store import AlreadyChosen, ClipStore
from rlhf_ray.feedback.labelling.database import Database, StoreError
from tests.feedback.clip_cases import clips
from tests.feedback.labelling_cases import Clock
from tests.feedback.played_page import PlayedPage


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        database = Database(str(tmp_path / "clips.db"))
    else:
        database = Database(request.getfixturevalue("postgresql"))
        with database.writing() as connection:
            connection.exec_driver_sql("TRUNCATE clip_pairs, clip_choices RESTART IDENTITY CASCADE")
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> ClipStore:
    store = ClipStore(database, "run", 60, Clock())
    store.add(pairs(3))
    return store


def pairs(count: int, first: int = 0) -> list[tuple[int, Clips, Clips]]:
    return [(number, clips(1, first=number), clips(1, first=number + 100)) for number in range(first, first + count)]


def test_clips_come_back_as_they_were_without_their_true_return(store: ClipStore) -> None:
    given = pairs(1)[0]
    pair = store.draw("anna")
    assert pair is not None
    for side, found in zip(given[1:], (pair.left, pair.right), strict=True):
        np.testing.assert_array_equal(found.observations, side.observations)
        np.testing.assert_array_equal(found.actions, side.actions)
        assert np.isnan(found.true_returns).all()


def test_the_same_numbers_are_asked_once_and_runs_do_not_mix(database: Database, store: ClipStore) -> None:
    store.add(pairs(5))
    assert store.numbers() == [0, 1, 2, 3, 4]
    other = ClipStore(database, "other", 60, Clock())
    assert other.numbers() == []
    assert other.draw("anna") is None
    other.add(pairs(1))
    assert (other.waiting(), store.waiting()) == (1, 5)


def test_every_choice_is_stored_once_whoever_clicks_twice(store: ClipStore) -> None:
    for number, choice in enumerate(CHOICES[:3]):
        pair = store.draw("anna")
        assert pair is not None
        assert pair.number == number
        for _ in range(2):
            store.choose("anna", pair.id, f"click {number}", choice, 1.5)
    assert store.draw("anna") is None
    assert [(pair.number, choice) for pair, choice in store.chosen()] == list(enumerate(CHOICES[:3]))
    assert store.waiting() == 0
    progress = store.progress("anna")
    assert (progress.mine, progress.mine_today, progress.done, progress.total) == (3, 3, 3, 3)
    assert progress.median_seconds == 1.5


def test_two_annotators_get_different_pairs_and_a_lease_runs_out(database: Database) -> None:
    clock = Clock()
    store = ClipStore(database, "run", 60, clock)
    store.add(pairs(2))
    anna, bob = store.draw("anna"), store.draw("bob")
    assert anna is not None
    assert bob is not None
    assert anna.number != bob.number
    assert store.draw("anna").number == anna.number  # type: ignore[union-attr]
    assert store.draw("eve") is None
    clock.now += 61
    late = store.draw("eve")
    assert late is not None
    store.choose("eve", late.id, "eve", "left", 1)
    with pytest.raises(AlreadyChosen, match="somebody else"):
        store.choose("anna", late.id, "anna", "right", 1)
    assert [choice for _, choice in store.chosen()] == ["left"]


def test_what_is_taken_back_counts_no_more_and_is_lent_again(store: ClipStore) -> None:
    assert store.undo("anna") is None
    first = store.draw("anna")
    assert first is not None
    store.choose("anna", first.id, "1", "left", 1)
    held = store.draw("anna")
    taken = store.undo("anna")
    assert taken is not None
    assert taken.number == first.number
    assert store.chosen() == []
    assert store.draw("anna").number == first.number  # type: ignore[union-attr]
    assert held is not None
    assert store.draw("bob").number == held.number  # type: ignore[union-attr]
    store.choose("anna", first.id, "2", "right", 1)
    assert [choice for _, choice in store.chosen()] == ["right"]
    assert store.undo("bob") is None


@pytest.mark.parametrize("choice", ["", "Left", "both", "left; drop table clip_pairs"])
def test_other_choices_are_refused(store: ClipStore, choice: str) -> None:
    pair = store.draw("anna")
    assert pair is not None
    with pytest.raises(BadInput, match="choices are left, right, equal, cannot_tell"):
        store.choose("anna", pair.id, "x", choice, 1)  # type: ignore[arg-type]
    assert store.waiting() == 3


def test_many_at_once_judge_each_pair_once(database: Database) -> None:
    store = ClipStore(database, "run")
    store.add(pairs(24))
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            while (pair := store.draw(name)) is not None:
                store.choose(name, pair.id, f"{name} {pair.id}", "equal", 0.1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"annotator {n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert [pair.number for pair, _ in store.chosen()] == list(range(24))


@pytest.fixture
def desk(store: ClipStore, monkeypatch: pytest.MonkeyPatch) -> ClipDesk:
    # A page in a test takes the place of `__main__`, which processes that are started later would run again.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    settings = ClipSettings(("哪一段更好？", "Which is *better*?"), "en")
    desk = ClipDesk(store, lambda clip: f"<svg>{clip.observations[0, 0, 0]:g}</svg>", settings)
    seat(desk)
    return desk


def test_the_page_from_the_first_clips_to_the_last(desk: ClipDesk, store: ClipStore) -> None:
    page = PlayedPage()
    assert page.data["question"] == "Which is *better*?"
    for act in ("left", "cannot_tell", "undo"):
        page.press(act)
    assert [choice for _, choice in store.chosen()] == ["left"]
    page.press("equal")
    page.press("right")
    assert [choice for _, choice in store.chosen()] == ["left", "equal", "right"]
    assert "no clips to compare now" in page.data["message"]
    # New ones come without a word of the annotator.
    store.add(pairs(1, first=3))
    page.app.run()
    assert page.data["kind"] == "choose"


def test_a_choice_that_comes_twice_is_about_the_clips_that_were_shown(desk: ClipDesk, store: ClipStore) -> None:
    page = PlayedPage()
    state = {"paper": page.data["paper"], "number": 1, "act": "left"}
    page.send(state)
    page.send(state)
    assert len(store.chosen()) == 1


def test_a_store_that_fails_says_so_and_the_clips_stay(
    desk: ClipDesk, store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = PlayedPage()

    def fail(*_: object) -> None:
        raise StoreError("store: the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(store, "choose", fail)
        page.press("left")
    assert page.notice is not None
    assert "the disk is full" in page.notice[1]
    page.press("left")
    assert len(store.chosen()) == 1


def test_a_page_that_waits_says_that_its_store_is_gone(
    desk: ClipDesk, store: ClipStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitor = PlayedPage()
    for _ in range(3):
        visitor.press("left")
    page = visitor.app
    assert not page.error

    def fail(*_: object) -> None:
        raise StoreError("store: the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(store, "draw", fail)
        page.run()
        assert "the disk is full" in page.error[0].value
    page.run()
    assert not page.error
    assert not page.exception


def test_the_language_switches(desk: ClipDesk) -> None:
    page = PlayedPage()
    next(one for one in page.app.button_group if one.label == "Language").set_value("zh").run()
    assert page.labels == ["左边更好", "一样好", "右边更好", "无法判断", "撤销上一条"]
    assert page.data["question"] == "哪一段更好？"

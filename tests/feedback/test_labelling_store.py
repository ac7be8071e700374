"""The store of labels: nothing twice, nothing lost, whoever works at the same time."""

import multiprocessing
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.feedback.labelling.assignment import AlreadyLabelled
from rlhf_ray.feedback.labelling.database import Database, StoreError
from rlhf_ray.feedback.labelling.items import NewItem, Overlap
from rlhf_ray.feedback.labelling.labels import Filter
from tests.feedback.labelling_cases import HOSTILE, Desk, draft, label_all, open_desk, prompts


@pytest.fixture(params=["sqlite", "postgresql"])
def desk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Desk]:
    if request.param == "sqlite":
        opened = open_desk(tmp_path / "labels.db")
    else:
        url = request.getfixturevalue("postgresql")
        opened = open_desk(url)
        with opened.database.writing() as connection:
            connection.exec_driver_sql("TRUNCATE items, slots, skips, labels RESTART IDENTITY CASCADE")
    yield opened
    opened.database.close()


def test_each_prompt_goes_to_one_annotator(desk: Desk) -> None:
    assert desk.items.add(prompts(20)) == 20
    anna, bob = desk.assignments.draw("anna"), desk.assignments.draw("bob")
    assert anna
    assert bob
    assert anna.item.id != bob.item.id
    done = label_all(desk, "bob", (1, 2, 3))
    assert len(done) == len(set(done)) == 18
    assert desk.labels.progress("bob").mine == 18
    assert desk.labels.progress("bob").lent == 2


def test_adding_the_same_prompts_again_adds_nothing(desk: Desk) -> None:
    desk.items.add(prompts(5))
    assert desk.items.add(prompts(7)) == 2
    assert desk.items.count() == 7


def test_a_visitor_who_comes_back_finds_the_same_prompt_and_what_was_chosen(desk: Desk) -> None:
    desk.items.add(prompts(5))
    drawn = desk.assignments.draw("anna")
    assert drawn
    chosen = draft(1, None, 2, reason="因为\n\x00 half done")
    assert desk.assignments.keep_draft("anna", drawn.item.id, chosen)
    again = desk.assignments.current("anna")
    assert again
    assert (again.item, again.draft) == (drawn.item, chosen)


def test_a_lease_runs_out_and_another_gets_the_prompt_without_the_draft(desk: Desk) -> None:
    desk.items.add(prompts(1))
    drawn = desk.assignments.draw("anna")
    assert drawn
    desk.assignments.keep_draft("anna", drawn.item.id, draft(1, 2, 3))
    desk.clock.now += 599
    assert desk.assignments.draw("bob") is None
    desk.clock.now += 2
    got = desk.assignments.draw("bob")
    assert got
    assert got.item.id == drawn.item.id
    assert got.draft is None
    assert not desk.assignments.keep_draft("anna", drawn.item.id, draft(1, 2, 3))


def test_work_done_after_the_lease_ran_out_is_stored_too(desk: Desk) -> None:
    desk.items.add(prompts(1))
    item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
    desk.clock.now += 601
    desk.assignments.draw("bob")
    desk.assignments.save("anna", item.id, "s1", draft(1, 2, 3), range(3), 5)
    desk.assignments.save("bob", item.id, "s2", draft(3, 2, 1), range(3), 5)
    assert sorted(label.annotator for label in desk.labels.all()) == ["anna", "bob"]


def test_one_saving_sent_twice_is_stored_once(desk: Desk) -> None:
    desk.items.add(prompts(1))
    item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
    first = desk.assignments.save("anna", item.id, "same", draft(1, 2, 3), range(3), 5)
    assert desk.assignments.save("anna", item.id, "same", draft(1, 2, 3), range(3), 5) == first
    with pytest.raises(AlreadyLabelled):
        desk.assignments.save("anna", item.id, "another", draft(1, 2, 3), range(3), 5)
    assert len(list(desk.labels.all())) == 1


def test_undo_brings_the_last_prompt_back_with_its_choices(desk: Desk) -> None:
    desk.items.add(prompts(3))
    assert desk.assignments.undo("anna") is None
    item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
    desk.assignments.save("anna", item.id, "one", draft(2, 1, 2, reason="why"), range(3), 5)
    desk.assignments.draw("anna")
    desk.clock.now += 1
    back = desk.assignments.undo("anna")
    assert back
    assert back.item.id == item.id
    assert back.draft == draft(2, 1, 2, reason="why")
    assert list(desk.labels.all()) == []
    assert desk.assignments.current("anna").item.id == item.id  # type: ignore[union-attr]
    desk.assignments.save("anna", item.id, "two", draft(1, 2, 3), range(3), 5)
    assert [label.ranks for label in desk.labels.all()] == [(0, 1, 2)]


def test_a_skipped_prompt_goes_to_others_only(desk: Desk) -> None:
    desk.items.add(prompts(1))
    item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
    desk.assignments.skip("anna", item.id)
    desk.assignments.skip("anna", item.id)
    assert desk.assignments.draw("anna") is None
    assert desk.assignments.draw("bob").item.id == item.id  # type: ignore[union-attr]


def test_undo_takes_back_what_came_last_a_label_or_a_skip(desk: Desk) -> None:
    desk.items.add(prompts(3))
    labelled = desk.assignments.draw("anna").item.id  # type: ignore[union-attr]
    desk.assignments.save("anna", labelled, "one", draft(2, 1, 2), range(3), 5)
    skipped = []
    for _ in range(2):
        desk.clock.now += 1
        skipped.append(desk.assignments.draw("anna").item.id)  # type: ignore[union-attr]
        desk.assignments.skip("anna", skipped[-1])
    slots = desk.labels.progress("anna").total
    for expected in (*reversed(skipped), labelled):
        desk.clock.now += 1
        back = desk.assignments.undo("anna")
        assert back
        assert back.item.id == expected
        assert desk.assignments.current("anna").item.id == expected  # type: ignore[union-attr]
    assert desk.assignments.undo("anna") is None
    assert desk.labels.progress("anna").total == slots, "each came back to the place that it had left"
    desk.assignments.save("anna", skipped[0], "two", draft(1, 2, 3), range(3), 5)
    assert [label.item_id for label in desk.labels.all()] == [skipped[0]]


def test_a_skip_is_taken_back_when_another_has_the_prompt_already(desk: Desk) -> None:
    desk.items.add(prompts(1))
    item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
    desk.assignments.skip("anna", item.id)
    assert desk.assignments.draw("bob")
    assert desk.assignments.undo("anna").item.id == item.id  # type: ignore[union-attr]
    for name in ("anna", "bob"):
        desk.assignments.save(name, item.id, name, draft(1, 2, 3), range(3), 5)
    assert {label.annotator for label in desk.labels.all()} == {"anna", "bob"}


def test_undo_does_not_bring_what_nobody_saw(desk: Desk) -> None:
    desk.items.add([NewItem("same", "chat", "test", ("yes", "yes"), ("v1", "v2")), NewItem("none", "chat", "test")])
    while (drawn := desk.assignments.draw("anna")) is not None:
        # As the desk does with prompts that leave nothing to choose.
        desk.assignments.skip("anna", drawn.item.id)
    assert desk.assignments.undo("anna") is None


def test_a_share_of_the_prompts_goes_to_several_annotators(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "labels.db", Overlap(0.25, annotators=3, seed=1))
    desk.items.add(prompts(200))
    total = desk.labels.progress("anna").total
    assert 200 + 2 * 30 < total < 200 + 2 * 70
    for name in ("anna", "bob", "cleo", "dora"):
        label_all(desk, name, (1, 2, 3))
    counts = Counter(label.item_id for label in desk.labels.all())
    assert set(counts.values()) == {1, 3}
    assert sum(counts.values()) == total
    assert len({(label.item_id, label.annotator) for label in desk.labels.all()}) == total


def test_correcting_and_deleting_keep_what_was_there(desk: Desk) -> None:
    desk.items.add(prompts(1))
    label_all(desk, "anna", (1, 2, 3))
    (label,) = desk.labels.all()
    new = desk.labels.correct(label.id, draft(3, 1, 1, reason="swapped"), by="owner")
    (corrected,) = desk.labels.all()
    assert (corrected.id, corrected.ranks, corrected.annotator) == (new, (1, 0, 0), "anna")
    with pytest.raises(BadInput, match="changed by somebody else"):
        desk.labels.correct(label.id, draft(1, 2, 3), by="owner")
    desk.labels.delete(new, by="owner")
    assert list(desk.labels.all()) == []
    assert desk.assignments.draw("bob") is not None
    with desk.database.reading() as connection:
        rows = connection.exec_driver_sql("SELECT state, changed_by FROM labels ORDER BY id").all()
    assert [tuple(row) for row in rows] == [("replaced", "owner"), ("deleted", "owner")]


def test_filters(desk: Desk) -> None:
    desk.items.add(
        [NewItem(f"问题 {n}", f"class {n % 2}", "test", (text, "other"), ("v", "v")) for n, text in enumerate(HOSTILE)]
    )
    label_all(desk, "anna", (1, 2))

    def found(**wanted: object) -> int:
        return desk.labels.page(Filter(**wanted), 0, 100)[1]  # type: ignore[arg-type]

    assert found() == len(HOSTILE)
    assert found(annotator="bob") == 0
    assert found(prompt_class="class 1") == len(HOSTILE) // 2
    assert found(text="问题 3") == 1
    assert found(text="DROP TABLE labels; --") == 1
    assert found(text="100%") == 0
    assert found(text="line\nbreak") == 1
    assert found(flagged=True) == 0
    assert desk.labels.annotators() == ["anna"]
    page, total = desk.labels.page(Filter(), 2, 3)
    assert (len(page), total) == (3, len(HOSTILE))


def test_hostile_text_comes_back_as_it_went_in(desk: Desk) -> None:
    desk.items.add(
        [NewItem(text, text[:50].replace("\0", ""), "test", (text, "other"), (text, "v")) for text in HOSTILE]
    )
    for _ in HOSTILE:
        item = desk.assignments.draw("anna' OR 1=1").item  # type: ignore[union-attr]
        reason = item.answers[0][:20_000]  # type: ignore[index]
        desk.assignments.save("anna' OR 1=1", item.id, item.key, draft(1, 2, reason=reason), [1, 0], 5)
    stored = list(desk.labels.all())
    assert sorted(label.answers[0] for label in stored) == sorted(HOSTILE)
    assert all(label.prompt == label.answers[0] == label.versions[0] for label in stored)
    assert all(label.reason == label.prompt[:20_000] for label in stored)


def test_half_a_surrogate_pair_is_refused(desk: Desk) -> None:
    with pytest.raises(BadInput, match="not valid Unicode"):
        desk.items.add([NewItem("\ud800", "chat", "test")])


def test_answers_are_kept_of_whoever_generated_first(desk: Desk) -> None:
    desk.items.add([NewItem("prompt", "chat", "model")])
    item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
    assert item.answers is None
    assert desk.items.answer(item.id, ["one", "two"], ["v", "v"]).answers == ("one", "two")
    assert desk.items.answer(item.id, ["three", "four"], ["v", "v"]).answers == ("one", "two")


def test_a_typed_prompt_is_for_its_annotator_alone(desk: Desk) -> None:
    typed = NewItem("typed", "chat", "model")
    item_id = desk.items.add_typed(typed)
    assert desk.items.add_typed(typed) == item_id
    assert desk.assignments.draw("bob") is None
    assert desk.assignments.take("anna", item_id).item.prompt == "typed"
    assert desk.assignments.take("anna", item_id).item.id == item_id


def _work(store: str, name: str, seed: int) -> None:
    desk = open_desk(store)
    dice = random.Random(seed)
    while (drawn := desk.assignments.draw(name)) is not None:
        ranks = draft(*dice.sample(range(1, 4), 3))
        if dice.random() < 0.2:
            desk.assignments.keep_draft(name, drawn.item.id, ranks)
        submission = f"{name}-{drawn.item.id}"
        for _ in range(1 + (dice.random() < 0.3)):
            desk.assignments.save(name, drawn.item.id, submission, ranks, range(3), 1)
    desk.database.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_processes_that_start_and_work_at_once_share_the_work(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = str(tmp_path / "labels.db")
    if kind == "postgresql":
        store = request.getfixturevalue("postgresql")
        desk = open_desk(store)
        with desk.database.writing() as connection:
            connection.exec_driver_sql("TRUNCATE items, slots, skips, labels RESTART IDENTITY CASCADE")
    desk = open_desk(store)
    desk.items.add(prompts(60))
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(store, f"annotator {n}", n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(90)
        assert worker.exitcode == 0
    stored = list(desk.labels.all())
    assert len(stored) == 60
    assert len({label.item_id for label in stored}) == 60
    desk.database.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_text("prompt,chosen\n" * 100), "not a database"),
    ],
    ids=["folder", "another file"],
)
def test_what_is_no_store_is_refused(make: object, words: str, tmp_path: Path) -> None:
    make(tmp_path / "labels.db")  # type: ignore[operator]
    with pytest.raises(BadInput, match=words):
        Database(str(tmp_path / "labels.db"))


def test_a_store_of_another_layout_is_refused(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "labels.db")
    with desk.database.writing() as connection:
        connection.exec_driver_sql("UPDATE about SET layout = 99")
    with pytest.raises(BadInput, match="layout 99"):
        Database(str(tmp_path / "labels.db"))


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(BadInput, match=r"store: postgresql://anna@127\.0\.0\.1:9/labels: .*refused"):
        Database("postgresql://anna@127.0.0.1:9/labels")


def test_a_store_that_broke_says_so_and_stores_nothing(tmp_path: Path) -> None:
    desk = open_desk(tmp_path / "labels.db")
    desk.items.add(prompts(1))
    item = desk.assignments.draw("anna").item  # type: ignore[union-attr]
    with desk.database.writing() as connection:
        connection.exec_driver_sql("DROP TABLE labels")
    with pytest.raises(StoreError, match="no such table"):
        desk.assignments.save("anna", item.id, "s", draft(1, 2, 3), range(3), 1)

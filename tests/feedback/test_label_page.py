"""The page as a script, without a browser: what each act of a visitor does to the store."""

import html
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from rlhf_ray.feedback.app import server
from rlhf_ray.feedback.app.session import plain, seat
from rlhf_ray.feedback.app.texts import TEXTS
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk, Settings
from rlhf_ray.feedback.labelling.items import NewItem
from tests.feedback.labelling_cases import HOSTILE, label_all, prompts
from tests.feedback.labelling_cases import Desk as Parts

ENTRY = Path(server.__file__).with_name("entry.py")


@pytest.fixture(autouse=True)
def _own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in a test takes the place of `__main__`, which processes that are started later would run again."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    database = Database(str(tmp_path / "labels.db"))
    desk = Desk(database, "label", [], Settings(language="en"))
    desk.items.add(prompts(4))
    seat(desk)
    yield desk
    database.close()


def _visit(name: str = "anna") -> AppTest:
    page = AppTest.from_file(str(ENTRY), default_timeout=30)
    page.query_params["name"] = name
    return page.run()


def _button(page: AppTest, label: str, number: int = 0) -> AppTest:
    return [button for button in page.button if button.label == label][number].click().run()


def test_every_text_is_there_in_both_languages_with_the_same_values() -> None:
    import string

    for name, both in TEXTS.items():
        zh, en = ({field for _, field, _, _ in string.Formatter().parse(one) if field} for one in both)
        assert zh == en, name
        assert all(both), name


def test_from_the_name_to_a_saved_label(desk: Desk) -> None:
    page = AppTest.from_file(str(ENTRY), default_timeout=30).run()
    page.text_input[0].set_value(" ")
    page.button[0].click().run()
    assert "the name is empty" in page.error[0].value
    page.text_input[0].set_value("anna")
    page.button[0].click().run()
    _button(page, "Random prompt")
    assert not page.exception
    _button(page, "Save this ranking")
    assert page.error[0].value == plain("Complete the ranking before saving!")
    for number in (2, 0, 1):
        _button(page, "Next best", number)
    assert any("C > A > B" in one.value for one in page.markdown)
    _button(page, "Save this ranking")
    (label,) = desk.labels.all()
    assert [label.ranks[place] for place in label.shown] == [1, 2, 0]
    assert page.success[0].value == plain("Saved.")
    assert not page.exception


def test_a_held_rank_is_named_and_not_saved_unless_ties_are_allowed(desk: Desk) -> None:
    page = _visit()
    _button(page, "Random prompt")
    ranks = [one for one in page.button_group if one.label == "Rank"]
    for number, rank in enumerate((2, 1, 2)):
        ranks = [one for one in page.button_group if one.label == "Rank"]
        ranks[number].set_value(rank).run()
    assert "held by answer A" in page.error[0].value
    _button(page, "Save this ranking")
    assert list(desk.labels.all()) == []
    page.toggle[0].set_value(True).run()
    assert "Tied with answer A" in page.info[0].value
    _button(page, "Save this ranking")
    (label,) = desk.labels.all()
    assert [label.ranks[place] for place in label.shown] == [1, 0, 1]


def test_a_page_that_is_loaded_again_has_lost_nothing(desk: Desk) -> None:
    page = _visit()
    _button(page, "Random prompt")
    _button(page, "Next best", 1)
    page.text_area[-1].set_value("half a reason").run()
    shown = page.session_state["sheet"].item.id
    again = _visit()
    assert again.session_state["sheet"].item.id == shown
    assert [one.value for one in again.button_group if one.label == "Rank"] == [None, 1, None]
    assert again.text_area[-1].value == "half a reason"


def test_skip_and_undo(desk: Desk) -> None:
    page = _visit()
    _button(page, "Random prompt")
    first = page.session_state["sheet"].item.id
    _button(page, "Skip")
    second = page.session_state["sheet"].item.id
    assert first != second
    for number in range(3):
        _button(page, "Next best", number)
    _button(page, "Save this ranking")
    assert page.session_state["sheet"].item.id not in (first, second)
    _button(page, "Undo the last")
    assert page.session_state["sheet"].item.id == second
    assert [one.value for one in page.button_group if one.label == "Rank"] == [1, 2, 3]
    assert list(desk.labels.all()) == []


def test_the_language_switches_and_the_work_stays(desk: Desk) -> None:
    page = _visit()
    _button(page, "Random prompt")
    _button(page, "Next best", 0)
    next(one for one in page.button_group if one.label == "Language").set_value("zh").run()
    assert any(one.label == "存储当前排序" for one in page.button)
    assert [one.value for one in page.button_group if one.label == "排名"] == [1, None, None]


def test_hostile_texts_are_texts(desk: Desk) -> None:
    for text in HOSTILE:
        desk.items.add([NewItem(text, text, text, (text, "other"), (text, "v"))])
    seen = set()
    page = _visit("<b>anna</b>")
    for _ in range(len(HOSTILE) + 4):
        page = _button(page, "Random prompt" if "sheet" not in page.session_state or not seen else "Skip")
        assert not page.exception
        seen |= {shown(one.proto.body) for one in page.get("html")}
    assert {as_shown(text) for text in HOSTILE} <= seen


def shown(body: str) -> str:
    """What a browser shows of a text on the page: no tag but the one around it."""
    inside = re.fullmatch(r'<div class="text" dir="auto">([^<>]*)</div>', body)
    return html.unescape(inside[1]) if inside else ""


def as_shown(text: str) -> str:
    """Controls are shown by their pictures, all line ends as one."""
    return text.replace("\0", "␀").replace("\x1b", "␛").replace("\r", "\n")


def test_a_store_that_fails_loses_no_input(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_ray.feedback.labelling.database import StoreError

    page = _visit()
    _button(page, "Random prompt")
    for number in range(3):
        _button(page, "Next best", number)
    with monkeypatch.context() as broken:
        broken.setattr(desk.assignments, "save", _raise(StoreError("store: the disk is full")))
        _button(page, "Save this ranking")
    assert "the disk is full" in page.error[0].value
    assert [one.value for one in page.button_group if one.label == "Rank"] == [1, 2, 3]
    _button(page, "Save this ranking")
    assert len(list(desk.labels.all())) == 1


def test_the_data_set_is_browsed(desk: Desk) -> None:
    label_all(_parts(desk), "anna", (1, 2, 3))
    label_all(_parts(desk), "bob", (3, 2, 1))
    page = _visit()
    page.session_state["tabs-en"] = "Dataset"
    page.run()
    assert any("4 labels" in one.value for one in page.caption)
    assert not page.exception
    page.text_input[0].set_value("prompt 2").run()
    assert any("1 labels" in one.value for one in page.caption)


@pytest.fixture
def comparison(tmp_path: Path) -> Iterator[Desk]:
    database = Database(str(tmp_path / "comparison.db"))
    desk = Desk(database, "compare", [], Settings(language="en"))
    desk.items.add(prompts(6, answers=2))
    seat(desk)
    yield desk
    database.close()


def test_choices_are_stored_for_the_answer_that_was_shown_there(comparison: Desk) -> None:
    page = _visit()
    _button(page, "Random prompt")
    expected = {}
    for number, (choice, ranks) in enumerate((("Left is better", (0, 1)), ("Equally good", (0, 0))) * 2):
        sheet = page.session_state["sheet"]
        expected[sheet.item.id] = tuple(ranks[sheet.shown.index(place)] for place in range(2))
        page.text_area[0].set_value(f"reason {number}").run()
        _button(page, choice)
        assert not page.exception
    stored = list(comparison.labels.all())
    assert {label.item_id: label.ranks for label in stored} == expected
    assert [label.reason for label in stored] == [f"reason {number}" for number in range(4)]
    assert "v1" not in str(page.main)
    _button(page, "Undo the last")
    assert page.text_area[0].value == "reason 3"
    page.session_state["tabs-en"] = "Results"
    page.run()
    assert not page.exception
    table = page.dataframe[0].value
    assert list(table["n"]) == [3, 3]


def _parts(desk: Desk) -> Parts:
    return Parts(None, desk.items, desk.assignments, desk.labels)  # type: ignore[arg-type]


def _raise(error: Exception) -> object:
    def failing(*_: object) -> None:
        raise error

    return failing

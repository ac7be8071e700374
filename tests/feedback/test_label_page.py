"""The page as a script, without a browser: what each act of a visitor does to the store."""

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from rlhf_ray.config.errors import BadInput
from rlhf_ray.feedback.app import sheet_view
from rlhf_ray.feedback.app.session import plain, seat
from rlhf_ray.feedback.app.texts import TEXTS
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk, DeskSettings
from rlhf_ray.feedback.labelling.exports import write_export
from rlhf_ray.feedback.labelling.items import NewItem
from tests.feedback.labelling_cases import HOSTILE, label_all, prompts
from tests.feedback.labelling_cases import Desk as Parts
from tests.feedback.played_page import PlayedPage


@pytest.fixture(autouse=True)
def _own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page in a test takes the place of `__main__`, which processes that are started later would run again."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    database = Database(str(tmp_path / "labels.db"))
    desk = Desk(database, "label", [], DeskSettings(language="en"))
    desk.items.add(prompts(4))
    seat(desk)
    yield desk
    database.close()


def test_every_text_is_there_in_both_languages_with_the_same_values() -> None:
    import string

    for name, both in TEXTS.items():
        zh, en = ({field for _, field, _, _ in string.Formatter().parse(one) if field} for one in both)
        assert zh == en, name
        assert all(both), name


def _rank(page: PlayedPage, *ranks: int | None, **more: Any) -> None:
    """Give answers their ranks one after the other, as they stand on the page."""
    for count in range(1, len(ranks) + 1):
        page.write(ranks=[*ranks[:count], *[None] * (len(ranks) - count)], **more)


def test_from_the_name_to_a_saved_label(desk: Desk) -> None:
    page = PlayedPage(name=None)
    page.app.text_input[0].set_value(" ")
    page.app.button[0].click().run()
    assert "the name is empty" in page.app.error[0].value
    page.app.text_input[0].set_value("anna")
    page.app.button[0].click().run()
    assert page.data["message"] == "Press “Random prompt” to begin."
    page.press("draw")
    page.press("save")
    assert page.notice == ("error", "Complete the ranking before saving!")
    _rank(page, 2, 3, 1)
    page.press("save")
    (label,) = desk.labels.all()
    assert [label.ranks[place] for place in label.shown] == [1, 2, 0]
    assert page.notice == ("success", "Saved.")


def test_a_held_rank_is_named_and_not_saved_unless_ties_are_allowed(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    _rank(page, 2, 1, 2)
    page.press("save")
    assert page.notice == ("error", "Rank 2 is held by answer A; choose another, or allow ties.")
    assert list(desk.labels.all()) == []
    page.write(ties=True)
    page.press("save")
    (label,) = desk.labels.all()
    assert [label.ranks[place] for place in label.shown] == [1, 0, 1]


def test_a_page_that_is_loaded_again_has_lost_nothing(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    page.write(ranks=[None, 1, None], flags=[["harmful"], [], []], overall=[None, None, 7], reason="half a reason")
    shown = page.app.session_state["sheet"].item.id
    again = PlayedPage()
    assert again.app.session_state["sheet"].item.id == shown
    assert again.data["work"] == {
        "ranks": [None, 1, None],
        "overall": [None, None, 7],
        "flags": [["harmful"], [], []],
        "reason": "half a reason",
        "ties": False,
    }


def test_a_state_is_whole_so_that_those_before_it_may_be_lost_and_it_may_come_twice(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    whole = {"ranks": [3, 1, 2], "overall": [None] * 3, "flags": [[]] * 3, "reason": "", "ties": False}
    state = {"paper": page.data["paper"], "number": 9, "act": "save", **whole}
    page.send(state)
    page.send(state)
    (label,) = desk.labels.all()
    assert [label.ranks[place] for place in label.shown] == [2, 0, 1]
    assert page.data["work"]["ranks"] == [None] * 3, "what was pressed twice is not about the sheet that came after it"


def test_what_the_browser_is_given_does_not_change_while_somebody_types(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    before = page.data
    _rank(page, 1, 2, 3, reason="because")
    assert page.data == before


def test_a_state_that_no_page_sends_changes_nothing(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    good = {"paper": page.data["paper"], "number": 1, "act": "save", **page.work, "ranks": [1, 2, 3]}
    wrong: list[dict[str, Any]] = [
        {"ranks": [1, 2]},
        {"ranks": [True, 2, 3]},
        {"ranks": "123"},
        {"ranks": [1, 2, 30]},
        {"flags": [["no flag"], [], []]},
        {"overall": [8, None, None]},
        {"reason": 7},
        {"more": 1},
        {"number": None},
    ]
    notices = set()
    for changes in wrong:
        page.send(good | changes)
        assert not page.app.exception, changes
        assert page.notice is not None
        assert page.notice[0] == "error", changes
        notices.add(page.data["notice"]["id"])
    assert len(notices) == len(wrong)
    assert list(desk.labels.all()) == []
    assert PlayedPage().data["work"]["ranks"] == [None] * 3
    page.send(good)
    assert len(list(desk.labels.all())) == 1


def test_skip_and_undo(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    first = page.app.session_state["sheet"].item.id
    page.press("skip")
    assert page.notice == ("success", "Skipped.")
    second = page.app.session_state["sheet"].item.id
    assert first != second
    _rank(page, 1, 2, 3)
    page.press("save")
    third = page.app.session_state["sheet"].item.id
    assert third not in (first, second)
    page.write(ranks=[None, 1, None])
    page.press("undo")
    assert page.app.session_state["sheet"].item.id == second
    assert page.data["work"]["ranks"] == [1, 2, 3]
    assert list(desk.labels.all()) == []
    page.press("save")
    assert page.app.session_state["sheet"].item.id == third
    assert page.data["work"]["ranks"] == [None, 1, None], "what was on the desk when the other was taken back"
    page.press("undo")
    page.press("undo")
    assert page.app.session_state["sheet"].item.id == first, "what was skipped before it"
    page.press("undo")
    assert page.notice == ("info", "There is nothing to undo.")


def test_undo_after_a_skip_brings_back_the_skipped_sheet_as_it_was(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    _rank(page, 1, 2, 3)
    page.press("save")
    second = page.app.session_state["sheet"].item.id
    page.write(ranks=[None, 1, None], reason="a slip of the finger")
    page.press("skip")
    assert page.app.session_state["sheet"].item.id != second
    page.press("undo")
    assert page.app.session_state["sheet"].item.id == second
    assert page.data["work"]["ranks"] == [None, 1, None]
    assert page.data["work"]["reason"] == "a slip of the finger"
    assert len(list(desk.labels.all())) == 1
    assert PlayedPage().data["work"]["reason"] == "a slip of the finger", "it is stored again, too"


def test_the_language_switches_and_the_work_stays(desk: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    paper = page.data["paper"]
    page.write(ranks=[1, None, None])
    next(one for one in page.app.button_group if one.label == "Language").set_value("zh").run()
    assert page.labels == ["存储当前排序", "跳过", "撤销上一条"]
    assert page.data["paper"] == paper, "the browser keeps what it holds about a sheet"
    assert page.app.session_state["sheet"].draft.ranks.count(1) == 1


def test_one_button_is_what_comes_next_and_every_key_is_among_those_listed(desk: Desk) -> None:
    page = PlayedPage()
    for act in ("draw", "undo"):
        actions = [*page.data["choices"], *page.data["buttons"]]
        assert [one["primary"] for one in actions].count(True) == 1
        assert all(f"`{key}`" in TEXTS["keys_label"][1] for one in actions for key in one["sign"].split("+"))
        page.press(act)


def test_hostile_texts_are_texts(desk: Desk) -> None:
    for text in HOSTILE:
        desk.items.add([NewItem(text, text, text, (text, "other"), (text, "v"))])
    seen = set()
    page = PlayedPage("<b>anna</b>")
    page.press("draw")
    for _ in range(len(HOSTILE) + 4):
        seen |= {one["text"] for one in [*page.data["answers"], *page.data["prompt"]["turns"]]}
        page.press("skip")
    assert {as_shown(text) for text in HOSTILE} <= seen


def as_shown(text: str) -> str:
    """Controls are shown by their pictures, all line ends as one."""
    return text.replace("\0", "␀").replace("\x1b", "␛").replace("\r", "\n")


def test_a_store_that_fails_loses_no_input(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_ray.feedback.labelling.database import StoreError

    page = PlayedPage()
    page.press("draw")
    paper = page.data["paper"]
    _rank(page, 1, 2, 3)
    with monkeypatch.context() as broken:
        broken.setattr(desk.assignments, "save", _raise(StoreError("store: the disk is full")))
        page.press("save")
    assert page.notice is not None
    assert "the disk is full" in page.notice[1]
    assert page.data["notice"]["number"] == 5, "the browser opens the sheet again that it closed with this state"
    assert page.data["paper"] == paper
    page.press("save")
    assert len(list(desk.labels.all())) == 1


def test_the_data_set_is_browsed(desk: Desk) -> None:
    label_all(_parts(desk), "anna", (1, 2, 3))
    label_all(_parts(desk), "bob", (3, 2, 1))
    page = PlayedPage().app
    page.session_state["tabs-en"] = "Dataset"
    page.run()
    assert any("4 labels" in one.value for one in page.caption)
    assert not page.exception
    page.text_input[0].set_value("prompt 2").run()
    assert any("1 labels" in one.value for one in page.caption)


def _data_set() -> AppTest:
    """The tab Dataset, and that nothing failed on it."""
    page = PlayedPage().app
    page.session_state["tabs-en"] = "Dataset"
    page.run()
    assert not page.exception
    return page


def test_a_file_that_cannot_hold_the_labels_is_refused_in_the_words_of_the_command(desk: Desk) -> None:
    label_all(_parts(desk), "anna", (1, 2, 3))
    assert not any(button.proto.disabled for button in _data_set().get("download_button"))
    turns = [{"role": "user", "content": "Hello"}]
    desk.items.add([NewItem(turns, "chat", "test", ("a", "b", "c"), ("v1",) * 3)])  # type: ignore[arg-type]
    label_all(_parts(desk), "anna", (1, 1, 1))
    assert not _data_set().warning, "a label that prefers nothing is in no file"
    label_all(_parts(desk), "bob", (3, 2, 1))
    desk.items.add([NewItem([*turns, *turns], "chat", "test", ("a", "b"), ("v1",) * 2)])  # type: ignore[arg-type]
    label_all(_parts(desk), "bob", (1, 2))
    with pytest.raises(BadInput) as refused:
        write_export(desk.labels.all(), io.BytesIO(), "labels.parquet", "label")
    page = _data_set()
    assert [one.value for one in page.warning] == [plain(str(refused.value))]
    disabled = {button.proto.label: button.proto.disabled for button in page.get("download_button")}
    assert disabled == {"JSONL": False, "PARQUET": True, "TSV": False}


@pytest.fixture
def comparison(tmp_path: Path) -> Iterator[Desk]:
    database = Database(str(tmp_path / "comparison.db"))
    desk = Desk(database, "compare", [], DeskSettings(language="en"))
    desk.items.add(prompts(6, answers=2))
    seat(desk)
    yield desk
    database.close()


def test_choices_are_stored_for_the_answer_that_was_shown_there(comparison: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    expected = {}
    for number, (choice, ranks) in enumerate((("left", (0, 1)), ("equal", (0, 0))) * 2):
        sheet = page.app.session_state["sheet"]
        expected[sheet.item.id] = tuple(ranks[sheet.shown.index(place)] for place in range(2))
        page.write(reason=f"reason {number}")
        assert "v1" not in json.dumps(page.data)
        page.press(choice)
    stored = list(comparison.labels.all())
    assert {label.item_id: label.ranks for label in stored} == expected
    assert [label.reason for label in stored] == [f"reason {number}" for number in range(4)]
    page.press("undo")
    assert page.data["work"] == {"reason": "reason 3"}
    page.app.session_state["tabs-en"] = "Results"
    page.app.run()
    assert not page.app.exception
    shown = "".join(one.proto.body for one in page.app.get("html"))
    assert re.findall(r'data-column="n"><span dir="auto">(\d+)<', shown) == ["3", "3"]


def test_no_side_of_a_comparison_is_favoured_and_every_key_is_listed(comparison: Desk) -> None:
    page = PlayedPage()
    assert [one["primary"] for one in page.data["buttons"]] == [True, False]
    signs = {one["sign"] for one in page.data["buttons"]}
    page.press("draw")
    actions = [*page.data["choices"], *page.data["buttons"]]
    assert not any(one["primary"] for one in actions)
    signs |= {one["sign"] for one in actions}
    assert all(f"`{sign}`" in text for sign in signs for text in TEXTS["keys_compare"])


def test_a_comparisons_data_set_shows_nothing_that_its_page_cannot_set(comparison: Desk) -> None:
    label_all(_parts(comparison), "anna", (2, 1))
    page = _data_set()
    columns = set(page.dataframe[0].value.columns)
    assert {"Order", "Reason (optional)"} <= columns
    assert not columns & {"Overall quality 1–7", "Flags"}
    assert not page.checkbox
    label = next(comparison.labels.all())
    seen = AppTest.from_function(_detail, kwargs={"label": label})
    seen.session_state["annotator"] = "anna"
    seen.run()
    assert not seen.exception
    assert [one.label for one in seen.selectbox] == ["Rank", "Rank"]
    assert not seen.multiselect
    seen.selectbox[0].set_value(1)
    seen.selectbox[1].set_value(2)
    seen.button[0].click().run()
    assert not seen.exception
    assert {one.ranks for one in comparison.labels.all() if one.item_id == label.item_id} == {(0, 1)}


def _detail(label):  # type: ignore[no-untyped-def]
    """A page with one label alone; Streamlit runs this source by itself, without what stands around it."""
    from rlhf_ray.feedback.app.dataset_tab import show_detail

    show_detail(label, "anna")


def test_an_empty_desk_says_why(comparison: Desk) -> None:
    page = PlayedPage()
    page.press("draw")
    for _ in range(6):
        page.press("skip")
    assert page.data["kind"] == "empty"
    assert page.data["message"].startswith("No prompt is left for you")


def _parts(desk: Desk) -> Parts:
    return Parts(None, desk.items, desk.assignments, desk.labels)  # type: ignore[arg-type]


def _raise(error: Exception) -> object:
    def failing(*_: object) -> None:
        raise error

    return failing


def test_calls_and_thoughts_of_a_prompts_turns_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet_view, "say", lambda *_, **__: "Prompt")
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    turns = [{"role": "assistant", "content": "Let me look.", "reasoning_content": "Rain?", "tool_calls": [call]}]
    [turn] = sheet_view.shown_prompt(turns, "generation")["turns"]  # type: ignore[misc]
    for words in ("Let me look.", "Rain?", "weather", "Oslo"):
        assert words in turn["text"]

"""What a page sends while it is left: stored without its session, and by nobody who does not know the sheet."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from rlhf_ray.feedback.app.leaving import ADDRESS, MOST_BYTES, LeftSheets, leaving_route
from rlhf_ray.feedback.app.session import seat
from rlhf_ray.feedback.app.work import Work
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.desk import Desk, DeskSettings
from rlhf_ray.feedback.labelling.items import Task
from tests.feedback.labelling_cases import prompts
from tests.feedback.played_page import PlayedPage

CLIENT = TestClient(Starlette(routes=[leaving_route()]))


@pytest.fixture(params=["label", "compare"])
def page(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PlayedPage]:
    task: Task = request.param
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    database = Database(str(tmp_path / "labels.db"))
    desk = Desk(database, task, [], DeskSettings(language="en"))
    desk.items.add(prompts(3, answers=2))
    seat(desk)
    page = PlayedPage()
    page.press("draw")
    yield page
    database.close()


def _leave(page: PlayedPage, number: int, **changes: Any) -> int:
    state = {"paper": page.data["paper"], "number": number, "act": None, **page.work, **changes}
    return CLIENT.post(f"/{ADDRESS}", content=json.dumps(state)).status_code


def test_what_was_written_last_is_there_when_the_page_comes_back(page: PlayedPage) -> None:
    assert page.data["leaving"] == ADDRESS
    assert _leave(page, 7, reason="to the last letter") == 204
    assert PlayedPage().data["work"]["reason"] == "to the last letter"


def test_an_older_state_that_comes_later_changes_nothing(page: PlayedPage) -> None:
    _leave(page, 7, reason="to the last letter")
    for number, expected in ((6, "to the last letter"), (8, "and on")):
        page.send({"paper": page.data["paper"], "number": number, "act": None, **page.work, "reason": "and on"})
        assert PlayedPage().data["work"]["reason"] == expected


def test_only_a_sheet_that_is_known_is_written_on(page: PlayedPage) -> None:
    assert _leave(page, 7, reason="of another", paper="0" * 32) == 404
    assert _leave(page, 7, reason=7) == 400
    assert _leave(page, 7, reason="x" * MOST_BYTES) == 413
    assert CLIENT.post(f"/{ADDRESS}", content=b"\xff{").status_code == 400
    assert CLIENT.get(f"/{ADDRESS}").status_code == 405
    assert PlayedPage().data["work"]["reason"] == ""


def test_sheets_of_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_ray.feedback.app.leaving.MOST_SHEETS", 2)
    sheets, kept = LeftSheets(), list[str]()
    for paper in ("a", "b", "a", "c"):
        sheets.expect(paper, lambda work: kept.append(work.paper))
    taken = [sheets.take(Work(paper=paper, number=1, act=None)) for paper in "abc"]
    assert taken == [True, False, True]
    assert kept == ["a", "c"]

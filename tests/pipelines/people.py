"""People at the labelling page of a round, without a browser: each button is a call of the desk, as on the page."""

from collections.abc import Callable
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.feedback.labelling.desk import Desk
from rlhf_ray.feedback.labelling.ranking import Draft
from rlhf_ray.jobs.people import label
from tests.browser.site import free_port


def rank_all(page: str, better: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, most: int | None = None) -> int:
    """Run `rlhf label PAGE`, and let two people rank what they are given by turns; returns how many labels they saved.

    Args:
        page: config that the round wrote.
        better: what makes an answer better; equal ones share a rank.
        monkeypatch: for the page, which is not shown.
        most: labels after which they go home.
    """
    saved: list[int] = []

    def visit(desk: Desk, _: object) -> None:
        people = ["anna", "博"]
        while people and (most is None or len(saved) < most):
            person = people.pop(0)
            sheet = desk.current(person) or desk.draw(person)
            if sheet is None:
                continue
            values = [better(text) for text in sheet.answers]
            order = sorted(set(values), reverse=True)
            ranks = tuple(order.index(value) + 1 for value in values)
            sheet.draft = Draft(ranks, (None,) * len(ranks), ((),) * len(ranks), "看起来更好")
            assert desk.assignments.keep_draft(person, sheet.item.id, sheet.draft), "each click is kept"
            saved.append(desk.save(person, sheet))
            people.append(person)

    with monkeypatch.context() as patch:
        patch.setattr(label, "serve", visit)
        assert cli.main(["label", page, "--port", str(free_port())]) == 0
    return len(saved)

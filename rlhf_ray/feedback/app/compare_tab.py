"""The tab Compare: two answers whose writers nobody is told, and a choice."""

from dataclasses import replace

import streamlit as st

from rlhf_ray.feedback.app import actions
from rlhf_ray.feedback.app.session import say, sheet
from rlhf_ray.feedback.app.sheet_view import (
    Work,
    choice_actions,
    draw_action,
    show_sheet,
    shown_prompt,
    skip_action,
    undo_action,
)
from rlhf_ray.feedback.app.texts_view import visible

RANKS = {"left": (1, 2), "equal": (1, 1), "right": (2, 1)}
"""Ranks of the left and the right answer, by choice."""


def show_compare_tab() -> None:
    """The whole tab."""
    current = sheet()
    if current is None:
        show_sheet("empty", _take, buttons=[draw_action(), undo_action()], message=say(st.session_state["why_empty"]))
        return
    show_sheet(
        "choose",
        _take,
        choices=choice_actions(),
        buttons=[skip_action(), undo_action()],
        prompt=shown_prompt(current.item.prompt, current.item.prompt_class),
        answers=[
            {"name": say(side), "text": visible(current.answers[place])}
            for side, place in zip(("left", "right"), current.shown, strict=True)
        ],
        work={"reason": current.laid_out.reason},
    )


def _take(work: Work) -> None:
    """What the browser sent: a reason is kept, and what was pressed is done."""
    current = sheet()
    if current is not None:
        current.draft = replace(current.draft, reason=work.reason)
    if work.act == "draw":
        actions.draw()
    elif work.act == "undo":
        actions.undo(current)
    elif current is not None:
        if work.act in RANKS:
            left, right = RANKS[work.act]
            by_answer = (left, right) if current.shown[0] == 0 else (right, left)
            current.draft = replace(current.draft, ranks=by_answer)
            actions.save(current)
        elif work.act == "skip":
            actions.skip(current.item.id)
        else:
            actions.keep_draft(current)

"""What buttons do. Each begins a new page run; what goes wrong is said, and what was entered stays."""

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app.session import annotator, clear_notice, desk, fail, notify, put, say, seated
from rlhf_ray.feedback.labelling.desk import Sheet

__all__ = ["draw", "fail", "keep_draft", "save", "show_undo", "skip", "take_up", "type_prompt", "undo"]


def take_up() -> None:
    """At the beginning of a session: what its annotator was at."""
    try:
        put(seated().current(annotator()))
    except RlhfError as error:
        put(None)
        fail(error)


def draw() -> None:
    """Another prompt from the pool; one that lies here unfinished stays with the annotator, and comes first."""
    clear_notice()
    _next()


def _next() -> None:
    try:
        with st.spinner(say("writing")):
            new = desk().current(annotator()) or desk().draw(annotator())
    except RlhfError as error:
        fail(error)
        return
    put(new)
    st.session_state.pop("ties", None)
    if new is None:
        notify("nothing_left", "info")


def type_prompt() -> None:
    """Answers to a prompt of the annotator's own."""
    clear_notice()
    try:
        with st.spinner(say("writing")):
            put(desk().typed(annotator(), st.session_state.get("own-prompt") or ""))
        st.session_state["own-prompt"] = ""
    except RlhfError as error:
        fail(error)


def keep_draft(current: Sheet) -> None:
    """Store what was chosen so far: a closed window loses nothing."""
    clear_notice()
    try:
        if not desk().assignments.keep_draft(annotator(), current.item.id, current.draft):
            notify("lease_lost", "warning")
    except RlhfError as error:
        fail(error)


def save(current: Sheet) -> None:
    """Store a label and go on.

    Raises:
        RlhfError: nothing was stored.
    """
    clear_notice()
    desk().save(annotator(), current)
    _next()
    if "notice" not in st.session_state:
        notify("saved")


def skip(item_id: int) -> None:
    """Give a prompt back and go on."""
    clear_notice()
    try:
        desk().assignments.skip(annotator(), item_id)
    except RlhfError as error:
        fail(error)
        return
    _next()
    if "notice" not in st.session_state:
        notify("skipped")


def undo() -> None:
    """Take the last label or choice back."""
    clear_notice()
    try:
        taken_back = seated().undo(annotator())
    except RlhfError as error:
        fail(error)
        return
    if taken_back is None:
        notify("nothing_to_undo", "info")
        return
    put(taken_back)
    st.session_state.pop("ties", None)
    notify("undone")


def show_undo() -> None:
    """The button that takes the last label or choice back."""
    st.button(say("undo"), key="undo", on_click=undo, shortcut="Z", width="stretch")

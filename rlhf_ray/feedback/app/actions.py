"""What buttons do. Each begins a new page run; what goes wrong is said, and what was entered stays."""

from collections.abc import Callable

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app.leaving import Keep
from rlhf_ray.feedback.app.session import annotator, clear_notice, desk, fail, notify, say, seated, set_sheet
from rlhf_ray.feedback.app.work import Work
from rlhf_ray.feedback.labelling.desk import Sheet
from rlhf_ray.feedback.labelling.ranking import Draft

__all__ = ["draw", "fail", "keep_draft", "keeper", "save", "skip", "take_up", "type_prompt", "undo"]


def take_up() -> None:
    """Open, at the beginning of a session, what its annotator was at."""
    try:
        set_sheet(seated().current(annotator()))
    except RlhfError as error:
        set_sheet(None)
        fail(error)


def draw() -> None:
    """Draw another prompt from the pool; one left unfinished stays with the annotator, and comes first."""
    clear_notice()
    _next()


def _next() -> None:
    try:
        new = desk().current(annotator()) or desk().draw(annotator())
    except RlhfError as error:
        fail(error)
        return
    set_sheet(new, why_empty="nothing_left")


def type_prompt() -> None:
    """Show answers to a prompt of the annotator's own."""
    clear_notice()
    try:
        with st.spinner(say("writing")):
            set_sheet(desk().typed(annotator(), st.session_state.get("own-prompt") or ""))
        st.session_state["own-prompt"] = ""
    except RlhfError as error:
        fail(error)


def keeper(current: Sheet, draft_of: Callable[[Work], Draft]) -> Keep:
    """Return what stores the state of a sheet after its page was left, when no session is left either."""
    assignments, name, item = desk().assignments, annotator(), current.item.id
    return lambda work: assignments.keep_draft(name, item, draft_of(work))


def keep_draft(current: Sheet) -> None:
    """Store what was chosen so far: a closed window loses nothing."""
    try:
        kept = desk().assignments.keep_draft(annotator(), current.item.id, current.draft)
    except RlhfError as error:
        fail(error)
        return
    if not kept and not current.lease_lost:
        # Once is enough: they may go on and save.
        current.lease_lost = True
        notify("lease_lost", "warning")


def save(current: Sheet) -> None:
    """Store a label and go on; where that fails, say so and stay."""
    clear_notice()
    try:
        desk().save(annotator(), current)
    except RlhfError as error:
        fail(error)
        return
    _next()
    if "notice" not in st.session_state:
        notify("saved")


def skip(current: Sheet) -> None:
    """Give a prompt back and go on."""
    clear_notice()
    try:
        desk().skip(annotator(), current)
    except RlhfError as error:
        fail(error)
        return
    _next()
    if "notice" not in st.session_state:
        notify("skipped")


def undo(current: Sheet | None = None) -> None:
    """Take the last label, choice or skip back; what is on the current sheet is kept for later."""
    clear_notice()
    if current is not None:
        keep_draft(current)
    try:
        taken_back = seated().undo(annotator())
    except RlhfError as error:
        fail(error)
        return
    if taken_back is None:
        notify("nothing_to_undo", "info")
        return
    set_sheet(taken_back)
    notify("undone")

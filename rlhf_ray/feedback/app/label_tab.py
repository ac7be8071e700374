"""The tab Label: draw or type a prompt, rank its answers, save."""

from functools import partial

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app import actions
from rlhf_ray.feedback.app.session import desk, notify, say, sheet, visible
from rlhf_ray.feedback.app.sheet_view import (
    draw_action,
    save_action,
    show_sheet,
    shown_prompt,
    skip_action,
    undo_action,
)
from rlhf_ray.feedback.app.work import Work
from rlhf_ray.feedback.labelling.desk import Sheet
from rlhf_ray.feedback.labelling.ranking import FLAGS, HIGHEST, conflicts, names_as_shown, unranked


def show_label_tab() -> None:
    """Show the tab on which answers are ranked."""
    if desk().answers_any_prompt:
        with st.popover(say("own")), st.form("own", border=False):
            st.text_area(say("own"), key="own-prompt", height=100)
            st.form_submit_button(say("own_button"), on_click=actions.type_prompt)
    current = sheet()
    if current is None:
        show_sheet("empty", _take, buttons=[draw_action(), undo_action()], message=say(st.session_state["why_empty"]))
        return
    letters = names_as_shown(current.shown)
    show_sheet(
        "rank",
        _take,
        buttons=[save_action(), skip_action(), undo_action()],
        prompt=shown_prompt(current.item.prompt, current.item.prompt_class),
        answers=[
            {"name": say("answer", letter=letters[place]), "text": visible(current.answers[place])}
            for place in current.shown
        ],
        work=_begun(current),
        keep=actions.keeper(current, partial(Work.draft, shown=tuple(current.shown))),
        refused={"n": say("first_this")},
        flags=[(flag, say(flag)) for flag in FLAGS],
        highest=HIGHEST,
    )


def _begun(current: Sheet) -> dict[str, object]:
    """Return what was on a sheet when it was laid out; what came to it since, the browser knows."""
    draft, shown = current.laid_out, current.shown
    return {
        "ranks": [draft.ranks[place] for place in shown],
        "overall": [draft.overall[place] for place in shown],
        "flags": [draft.flags[place] for place in shown],
        "reason": draft.reason,
        "ties": bool(conflicts(draft.ranks, shown)),
    }


def _take(work: Work) -> None:
    """Take what the browser sent: choices are kept, and what was pressed is done."""
    current = sheet()
    if current is not None:
        try:
            current.draft = work.draft(current.shown)
        except RlhfError as error:
            actions.fail(error)
            return
    if work.act == "draw":
        actions.draw()
    elif work.act == "undo":
        actions.undo(current)
    elif current is not None:
        if work.act == "save":
            _save(current, ties=work.ties)
        elif work.act == "skip":
            actions.skip(current)
        else:
            actions.keep_draft(current)


def _save(current: Sheet, *, ties: bool) -> None:
    clashes = conflicts(current.draft.ranks, current.shown)
    letters = names_as_shown(current.shown)
    if unranked(current.draft.ranks):
        notify("incomplete", "error")
    elif clashes and not ties:
        notify("conflict", "error", holder=letters[clashes[0].holder], rank=clashes[0].rank)
    else:
        actions.save(current)

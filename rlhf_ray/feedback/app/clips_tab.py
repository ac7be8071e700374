"""The tab Clips: two clips that play for ever, and a choice."""

import base64

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app.actions import fail, undo
from rlhf_ray.feedback.app.session import (
    annotator,
    clear_notice,
    clip_desk,
    clip_sheet,
    language,
    notify,
    plain,
    say,
    set_sheet,
)
from rlhf_ray.feedback.app.sheet_view import Action, choice_actions, show_sheet, undo_action
from rlhf_ray.feedback.app.work import Work
from rlhf_ray.feedback.clips.clips import Choice

CHOICES: dict[str, Choice] = {"left": "left", "equal": "equal", "right": "right", "cannot_tell": "cannot_tell"}
"""What the browser may send, and what it means."""

LOOK_SECONDS = 2.0
"""How often a page that waits for clips looks for them."""


def show_clips_tab() -> None:
    """Show the tab of clips."""
    current = clip_sheet()
    if current is None:
        show_sheet("empty", _take, buttons=[undo_action()], message=say("no_clips"))
        _look_for_clips()
        return
    show_sheet(
        "choose",
        _take,
        choices=choice_actions(),
        buttons=[Action("cannot_tell", say("cannot_tell"), "s", "S", looks=True), undo_action()],
        answers=[
            {"name": say(side), "picture": _address(picture)}
            for side, picture in (("left", current.left), ("right", current.right))
        ],
        question=clip_desk().settings.question[language() == "en"],
    )


def _address(picture: str) -> str:
    """Return a picture as the address of an image: within one nothing of it can reach the page."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}"


@st.fragment(run_every=LOOK_SECONDS)
def _look_for_clips() -> None:
    try:
        found = clip_desk().current(annotator())
    except RlhfError as error:
        # Nothing else of the page is drawn again here, so a notice on the sheet would not show.
        st.error(plain(say("failed", error=error)))
        return
    if found is not None:
        set_sheet(found)
        st.rerun()


def _take(work: Work) -> None:
    """Take what the browser sent: a choice, or that the last one is taken back."""
    current = clip_sheet()
    if work.act == "undo":
        undo()
    elif current is not None and work.act in CHOICES:
        clear_notice()
        try:
            if not clip_desk().choose(annotator(), current, CHOICES[work.act]):
                notify("too_late", "warning")
            set_sheet(clip_desk().current(annotator()))
        except RlhfError as error:
            fail(error)

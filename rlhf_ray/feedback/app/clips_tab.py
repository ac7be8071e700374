"""The tab Clips: two clips that play for ever, and a choice."""

import base64

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app.actions import fail, show_undo
from rlhf_ray.feedback.app.session import (
    annotator,
    clear_notice,
    clip_desk,
    clip_sheet,
    key,
    language,
    notify,
    plain,
    put,
    say,
)
from rlhf_ray.feedback.clips.clips import Choice

BUTTONS: tuple[tuple[str, str, Choice], ...] = (
    ("left_better", "Left", "left"),
    ("equal", "Down", "equal"),
    ("right_better", "Right", "right"),
    ("cannot_tell", "S", "cannot_tell"),
)
"""Text, key, and choice."""

LOOK_SECONDS = 2.0
"""How often a page that waits for clips looks for them."""


def show_clips_tab() -> None:
    """The whole tab."""
    current = clip_sheet()
    if current is None:
        st.info(say("no_clips"))
        _look_for_clips()
        show_undo()
        return
    st.subheader(plain(clip_desk().settings.question[language() == "en"]))
    for column, side, picture in zip(st.columns(2), ("left", "right"), (current.left, current.right), strict=True):
        with column, st.container(border=True, key=key("clip", side)):
            st.markdown(f"**{say(side)}**")
            # Within an image nothing of the picture can reach the page.
            encoded = base64.b64encode(picture.encode()).decode()
            st.html(
                f'<img alt="{side}" style="width: 100%; max-height: 60vh" src="data:image/svg+xml;base64,{encoded}">'
            )
    for column, (name, shortcut, choice) in zip(st.columns(4), BUTTONS, strict=True):
        column.button(
            say(name),
            key=key(name),
            type="secondary" if choice == "cannot_tell" else "primary",
            on_click=_choose,
            args=(current.submission, choice),
            shortcut=shortcut,
            width="stretch",
        )
    show_undo()


@st.fragment(run_every=LOOK_SECONDS)
def _look_for_clips() -> None:
    try:
        found = clip_desk().current(annotator())
    except RlhfError as error:
        # Nothing else of the page is drawn again here, so a notice above would not show.
        st.error(plain(say("failed", error=error)))
        return
    if found is not None:
        put(found)
        st.rerun()


def _choose(submission: str, choice: Choice) -> None:
    current = clip_sheet()
    # A second click, sent before the page had changed, is about the clips that the first was about.
    if current is None or current.submission != submission:
        return
    clear_notice()
    try:
        if not clip_desk().choose(annotator(), current, choice):
            notify("too_late", "warning")
        put(clip_desk().current(annotator()))
    except RlhfError as error:
        fail(error)

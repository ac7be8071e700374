"""The page around the tabs: who works, in which language, and how far the work is."""

from collections.abc import Callable

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app import actions
from rlhf_ray.feedback.app.clips_tab import show_clips_tab
from rlhf_ray.feedback.app.compare_tab import show_compare_tab, show_results_tab
from rlhf_ray.feedback.app.dataset_tab import show_dataset_tab
from rlhf_ray.feedback.app.label_tab import show_label_tab
from rlhf_ray.feedback.app.session import annotator, fail, language, say, seated, show_notice, show_style
from rlhf_ray.feedback.app.sheet_view import focus_on_form
from rlhf_ray.feedback.app.texts import LANGUAGES
from rlhf_ray.feedback.labelling.assignment import LONGEST_NAME, annotator_name

TABS: dict[str, dict[str, Callable[[], None]]] = {
    "label": {"tab_label": show_label_tab, "tab_dataset": show_dataset_tab},
    "compare": {"tab_compare": show_compare_tab, "tab_results": show_results_tab, "tab_dataset": show_dataset_tab},
    "clips": {"tab_clips": show_clips_tab},
}
"""Tabs of each task, by the name of their text."""

SHEETS = (show_label_tab, show_compare_tab, show_clips_tab)
"""Tabs that show notices on their sheets."""


def show_page() -> None:
    """Show the whole page; runs again at each action of the visitor."""
    st.set_page_config(page_title="rlhf", page_icon="⚖️", layout="wide")
    show_style()
    with st.sidebar:
        st.title(say(f"title_{seated().task}"))
    # Not in the sidebar, which a phone shows only when asked.
    with st.container(key="language"):
        _choose_language()
    if not _known():
        return
    with st.sidebar:
        _show_progress()
    tabs = TABS[seated().task]
    names = [say(name) for name in tabs]
    # The key holds the language, in which the names of the tabs are written.
    containers = st.tabs(names, on_change="rerun", key=f"tabs-{language()}")
    for container, show in zip(containers, tabs.values(), strict=True):
        if container.open:
            with container:
                if show not in SHEETS:
                    show_notice()
                try:
                    show()
                except RlhfError as error:
                    fail(error)
                    show_notice()


def _choose_language() -> None:
    st.segmented_control(
        say("language"),
        list(LANGUAGES),
        default=language(),
        format_func=LANGUAGES.__getitem__,
        required=True,
        key="language-choice",
        on_change=_switch_language,
        label_visibility="collapsed",
    )


def _switch_language() -> None:
    st.session_state["language"] = st.session_state["language-choice"]


def _known() -> bool:
    """Tell whether the visitor has a name, which the page's address keeps too, for when it is loaded again."""
    if "annotator" not in st.session_state and st.query_params.get("name"):
        _enter(st.query_params["name"])
    if "annotator" in st.session_state:
        return True
    with st.form("name", width=420):
        given = st.text_input(say("name"), max_chars=LONGEST_NAME)
        if st.form_submit_button(say("start"), type="primary") and _enter(given):
            st.rerun()
    focus_on_form()
    show_notice()
    return False


def _enter(given: str) -> bool:
    try:
        st.session_state["annotator"] = annotator_name(given)
    except RlhfError as error:
        fail(error)
        return False
    st.session_state.pop("notice", None)
    st.query_params["name"] = annotator()
    actions.take_up()
    return True


def _leave() -> None:
    for name in ("annotator", "sheet", "on_desk", "notice", "notice_on_sheet"):
        st.session_state.pop(name, None)
    st.query_params.clear()


def _show_progress() -> None:
    st.text(say("who", name=annotator()))
    try:
        progress = seated().progress(annotator())
    except RlhfError as error:
        fail(error)
        return
    mine, today = st.columns(2)
    mine.metric(say("mine"), progress.mine)
    today.metric(say("today"), progress.mine_today)
    if progress.median_seconds is not None:
        st.caption(f"{say('median')} {say('seconds', seconds=progress.median_seconds)}")
    share = progress.done / progress.total if progress.total else 0.0
    st.progress(share, text=say("progress", done=progress.done, total=progress.total))
    if progress.lent:
        st.caption(say("lent", lent=progress.lent))
    with st.expander(say("help"), expanded=True):
        st.markdown(say(f"keys_{seated().task}"))
    st.button(say("leave"), on_click=_leave, key="leave")

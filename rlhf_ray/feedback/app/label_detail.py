"""One stored label: what was judged, and a form to correct it."""

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app.session import desk, fail, notify, remember, say, show_prompt, show_text
from rlhf_ray.feedback.labelling.labels import Label
from rlhf_ray.feedback.labelling.ranking import FLAGS, HIGHEST, LONGEST_REASON, LOWEST, Draft, names_as_shown


def show_detail(label: Label, by: str) -> None:
    """The label, with buttons to correct and to delete it."""
    show_prompt(label.prompt, label.prompt_class, f"detail-prompt-{label.id}")
    letters = names_as_shown(label.shown)
    with st.form(f"detail-{label.id}"):
        for place in label.shown:
            st.markdown(f"**{say('answer', letter=letters[place])}**")
            # Nobody who still compares may learn which checkpoint wrote what.
            if desk().task == "label":
                st.text(label.versions[place])
            show_text(label.answers[place], f"detail-answer-{label.id}-{place}")
            _show_choices(label, place)
        st.text_area(say("reason"), key=remember(_key(label, "reason"), label.reason), max_chars=LONGEST_REASON)
        st.form_submit_button(say("correct"), on_click=_correct, args=(label, by))
    with st.popover(say("delete")):
        st.button(say("sure"), on_click=_delete, args=(label.id, by), type="primary", key=_key(label, "delete"))


def _show_choices(label: Label, place: int) -> None:
    count = len(label.answers)
    rank, overall, flags = st.columns([1, 1, 2])
    rank.selectbox(
        say("rank"),
        list(range(1, count + 1)),
        key=remember(_key(label, "rank", place), label.ranks[place] + 1),
    )
    overall.selectbox(
        say("overall"),
        [None, *range(LOWEST, HIGHEST + 1)],
        format_func=lambda score: "–" if score is None else str(score),
        key=remember(_key(label, "overall", place), label.overall[place]),
    )
    flags.multiselect(
        say("flags"), list(FLAGS), format_func=say, key=remember(_key(label, "flags", place), list(label.flags[place]))
    )


def _key(label: Label, name: str, place: int = 0) -> str:
    return f"detail-{label.id}-{name}-{place}"


def _correct(label: Label, by: str) -> None:
    places = range(len(label.answers))
    draft = Draft(
        tuple(st.session_state[_key(label, "rank", place)] for place in places),
        tuple(st.session_state[_key(label, "overall", place)] for place in places),
        tuple(tuple(st.session_state[_key(label, "flags", place)]) for place in places),
        st.session_state[_key(label, "reason")],
    )
    try:
        desk().labels.correct(label.id, draft, by)
    except RlhfError as error:
        fail(error)
    else:
        notify("corrected")


def _delete(label_id: int, by: str) -> None:
    try:
        desk().labels.delete(label_id, by)
    except RlhfError as error:
        fail(error)
    else:
        notify("deleted")

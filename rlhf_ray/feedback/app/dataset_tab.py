"""The tab Dataset: look through labels, correct and delete them, see the agreement, download."""

import io
import math
from collections.abc import Callable
from typing import Any

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.cleaning.texts import joined
from rlhf_ray.feedback.app.session import annotator, desk, fail, notify, plain, remember, say, show_prompt, show_text
from rlhf_ray.feedback.labelling.agreement import agreement
from rlhf_ray.feedback.labelling.exports import refusal, write_export
from rlhf_ray.feedback.labelling.labels import Filter, Label
from rlhf_ray.feedback.labelling.ranking import (
    FLAGS,
    HIGHEST,
    LONGEST_REASON,
    LOWEST,
    Draft,
    names_as_shown,
    order_line,
)

ROWS = 50
"""Labels on a page of the table."""
SHORT = 160
"""Characters of a text in the table."""
LONGEST_SEARCH = 200


def show_detail(label: Label, by: str) -> None:
    """Show the label, with buttons to correct and to delete it."""
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
    rank, overall, flags = st.columns([1, 1, 2])
    rank.selectbox(
        say("rank"),
        list(range(1, len(label.answers) + 1)),
        key=remember(_key(label, "rank", place), label.ranks[place] + 1),
    )
    if not _graded():
        return
    overall.selectbox(
        say("overall"),
        [None, *range(LOWEST, HIGHEST + 1)],
        format_func=lambda score: "–" if score is None else str(score),
        key=remember(_key(label, "overall", place), label.overall[place]),
        placeholder="–",
    )
    flags.multiselect(
        say("flags"),
        list(FLAGS),
        format_func=say,
        key=remember(_key(label, "flags", place), list(label.flags[place])),
        placeholder="–",
    )


def _graded() -> bool:
    """Tell whether answers have a quality and flags: who chooses between two says neither."""
    return desk().task == "label"


def _key(label: Label, name: str, place: int = 0) -> str:
    return f"detail-{label.id}-{name}-{place}"


def _correct(label: Label, by: str) -> None:
    places = range(len(label.answers))

    def given(name: str) -> tuple[Any, ...]:
        return tuple(st.session_state[_key(label, name, place)] for place in places)

    overall, flags = (
        (given("overall"), tuple(map(tuple, given("flags")))) if _graded() else (label.overall, label.flags)
    )
    draft = Draft(given("rank"), overall, flags, st.session_state[_key(label, "reason")])
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


def show_dataset_tab() -> None:
    """Show the tab of saved labels."""
    wanted = _filter()
    labels, count = desk().labels.page(wanted, (st.session_state.get("page", 1) - 1) * ROWS, ROWS)
    if count and not labels:
        # Another filter left fewer pages than the one that was open.
        st.session_state["page"] = 1
        labels, count = desk().labels.page(wanted, 0, ROWS)
    st.caption(f"{say('found', count=count)} {say('choose_row') if labels else ''}")
    if count > ROWS:
        st.number_input(say("page"), 1, math.ceil(count / ROWS), key="page", width=140)
    if labels:
        chosen = _table(labels)
        if chosen is not None:
            show_detail(chosen, annotator())
    elif not count:
        st.info(say("no_labels"))
    rankings = desk().labels.rankings()
    _show_agreement(rankings)
    _show_downloads(rankings)


def _filter() -> Filter:
    everyone = say("everyone")
    columns = st.columns([2, 2, 3, 1.4] if _graded() else [2, 2, 3], vertical_alignment="bottom")
    who = columns[0].selectbox(say("annotator"), [everyone, *desk().labels.annotators()], key="filter-annotator")
    which = columns[1].selectbox(say("class"), [everyone, *desk().labels.classes()], key="filter-class")
    words = columns[2].text_input(say("contains"), key="filter-text", max_chars=LONGEST_SEARCH)
    flagged = columns[3].checkbox(say("flagged"), key="filter-flagged") if _graded() else False
    return Filter(
        annotator="" if who == everyone else who,
        text=words,
        prompt_class="" if which == everyone else which,
        flagged=flagged,
    )


def _table(labels: list[Label]) -> Label | None:
    rows = [_row(label) for label in labels]
    # A table of other rows has no row chosen.
    key = f"table-{labels[0].id}-{len(labels)}"
    event = st.dataframe(rows, key=key, on_select="rerun", selection_mode="single-row", hide_index=True)
    chosen = event["selection"]["rows"]
    return labels[chosen[0]] if chosen and chosen[0] < len(labels) else None


def _row(label: Label) -> dict[str, object]:
    grades = {
        say("overall"): " ".join(str(label.overall[place] or "–") for place in label.shown),
        say("flags"): ", ".join(sorted({say(flag) for flags in label.flags for flag in flags})),
    }
    return {
        "ID": label.id,
        say("time"): label.moment.replace("T", " ")[:16],
        say("annotator"): label.annotator,
        say("class"): label.prompt_class,
        "Prompt": joined(label.prompt)[:SHORT],
        say("order_column"): order_line(label.ranks, names_as_shown(label.shown)),
        **(grades if _graded() else {}),
        say("reason"): label.reason[:SHORT],
    }


def _show_agreement(rankings: list[list[list[int]]]) -> None:
    st.subheader(say("agreement"))
    found = agreement(rankings)
    if not found.items:
        st.caption(say("no_agreement"))
        return
    values = (
        (say("shared"), str(found.items)),
        (say("pairwise"), _share(found.pairwise)),
        ("Kendall W", _number(found.kendall_w)),
        ("Krippendorff α", _number(found.alpha)),
    )
    for column, (name, value) in zip(st.columns(4), values, strict=True):
        column.metric(name, value)


def _show_downloads(rankings: list[list[list[int]]]) -> None:
    st.subheader(say("download"))
    everything = [ranks for item in rankings for ranks in item]
    equal = sum(len(set(ranks)) == 1 for ranks in everything)
    ties = sum(1 < len(set(ranks)) < len(ranks) for ranks in everything)
    refused = []
    for column, kind in zip(st.columns(6), ("jsonl", "parquet", "tsv"), strict=False):
        name = f"{desk().task}s.{kind}"
        # A file is made when somebody wants it, and then it would be too late to say why there is none.
        why_not = refusal(desk().labels, name, desk().task)
        refused += [] if why_not is None else [why_not]
        column.download_button(
            kind.upper(),
            data=_export(name),
            file_name=name,
            mime="application/octet-stream",
            key=f"download-{kind}",
            on_click="ignore",
            disabled=not everything or why_not is not None,
            width="stretch",
        )
    for why in refused:
        st.warning(plain(why))
    if equal and desk().task == "label":
        st.caption(say("left_out_all", count=equal))
    elif equal:
        # Of two answers: only the rank list has no place for them.
        ties += equal
    if ties:
        st.caption(say("left_out_ties", count=ties))


def _export(name: str) -> Callable[[], bytes]:
    """Make the file's content when somebody wants it."""
    labels, task = desk().labels, desk().task

    def content() -> bytes:
        stream = io.BytesIO()
        write_export(labels.all(), stream, name, task)
        return stream.getvalue()

    return content


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"

"""The tab Dataset: look through labels, correct and delete them, see the agreement, download."""

import io
import math
from collections.abc import Callable

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.cleaning.texts import joined
from rlhf_ray.feedback.app.label_detail import show_detail
from rlhf_ray.feedback.app.session import annotator, desk, fail, say
from rlhf_ray.feedback.labelling.agreement import agreement
from rlhf_ray.feedback.labelling.exports import write_export
from rlhf_ray.feedback.labelling.labels import Filter, Label
from rlhf_ray.feedback.labelling.ranking import names_as_shown, order_line

ROWS = 50
"""Labels on a page of the table."""
SHORT = 160
"""Characters of a text in the table."""
LONGEST_SEARCH = 200


def show_dataset_tab() -> None:
    """The whole tab."""
    wanted = _filter()
    labels, count = desk().labels.page(wanted, (st.session_state.get("page", 1) - 1) * ROWS, ROWS)
    if count and not labels:
        # Another filter left fewer pages than the one that was open.
        st.session_state["page"] = 1
        labels, count = desk().labels.page(wanted, 0, ROWS)
    st.caption(say("found", count=count))
    if count > ROWS:
        st.number_input(say("page"), 1, math.ceil(count / ROWS), key="page", width=140)
    if labels:
        chosen = _table(labels)
        if chosen is None:
            st.caption(say("choose_row"))
        else:
            show_detail(chosen, annotator())
    elif not count:
        st.info(say("no_labels"))
    rankings = desk().labels.rankings()
    _show_agreement(rankings)
    _show_downloads(rankings)


def _filter() -> Filter:
    everyone = say("everyone")
    columns = st.columns([2, 2, 3, 1.4], vertical_alignment="bottom")
    who = columns[0].selectbox(say("annotator"), [everyone, *desk().labels.annotators()], key="filter-annotator")
    which = columns[1].selectbox(say("class"), [everyone, *desk().labels.classes()], key="filter-class")
    words = columns[2].text_input(say("contains"), key="filter-text", max_chars=LONGEST_SEARCH)
    flagged = columns[3].checkbox(say("flagged"), key="filter-flagged")
    return Filter(
        annotator="" if who == everyone else who,
        text=words,
        prompt_class="" if which == everyone else which,
        flagged=flagged,
    )


def _table(labels: list[Label]) -> Label | None:
    rows = [
        {
            "ID": label.id,
            say("time"): label.moment.replace("T", " ")[:16],
            say("annotator"): label.annotator,
            say("class"): label.prompt_class,
            "Prompt": joined(label.prompt)[:SHORT],
            say("order_column"): order_line(label.ranks, names_as_shown(label.shown)),
            say("overall"): " ".join(str(label.overall[place] or "–") for place in label.shown),
            say("flags"): ", ".join(sorted({say(flag) for flags in label.flags for flag in flags})),
            say("reason"): label.reason[:SHORT],
        }
        for label in labels
    ]
    # A table of other rows has no row chosen.
    key = f"table-{labels[0].id}-{len(labels)}"
    event = st.dataframe(rows, key=key, on_select="rerun", selection_mode="single-row", hide_index=True)
    chosen = event["selection"]["rows"]
    return labels[chosen[0]] if chosen and chosen[0] < len(labels) else None


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
    for column, kind in zip(st.columns(6), ("jsonl", "parquet", "tsv"), strict=False):
        name = f"{desk().task}s.{kind}"
        column.download_button(
            kind.upper(),
            data=_export(name),
            file_name=name,
            mime="application/octet-stream",
            key=f"download-{kind}",
            on_click="ignore",
            disabled=not everything,
            width="stretch",
        )
    if equal and desk().task == "label":
        st.caption(say("left_out_all", count=equal))
    elif equal:
        # Of two answers: only the rank list has no place for them.
        ties += equal
    if ties:
        st.caption(say("left_out_ties", count=ties))


def _export(name: str) -> Callable[[], bytes]:
    """The file's content, made when somebody wants it."""
    labels, task = desk().labels, desk().task

    def content() -> bytes:
        stream = io.BytesIO()
        try:
            write_export(labels.all(), stream, name, task)
        except RlhfError as error:
            fail(error)
            raise
        return stream.getvalue()

    return content


def _share(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.0%}"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"

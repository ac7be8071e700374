"""The tab Compare: two answers whose writers nobody is told, and a choice."""

from dataclasses import replace
from functools import partial

import streamlit as st

from rlhf_ray.feedback.app import actions
from rlhf_ray.feedback.app.session import desk, say, sheet, show_table, visible
from rlhf_ray.feedback.app.sheet_view import (
    choice_actions,
    draw_action,
    show_sheet,
    shown_prompt,
    skip_action,
    undo_action,
)
from rlhf_ray.feedback.app.work import Work
from rlhf_ray.feedback.labelling.agreement import ALL, CheckpointWinRate, win_rates
from rlhf_ray.feedback.labelling.ranking import Draft

RANKS = {"left": (1, 2), "equal": (1, 1), "right": (2, 1)}
"""Ranks of the left and the right answer, by choice."""


def show_compare_tab() -> None:
    """Show the tab on which two answers are compared."""
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
        keep=actions.keeper(current, partial(_with_reason, current.laid_out)),
        refused={"n": say("first_this")},
    )


def _with_reason(draft: Draft, work: Work) -> Draft:
    return replace(draft, reason=work.reason)


def _take(work: Work) -> None:
    """Take what the browser sent: a reason is kept, and what was pressed is done."""
    current = sheet()
    if current is not None:
        current.draft = _with_reason(current.draft, work)
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
            actions.skip(current)
        else:
            actions.keep_draft(current)


REASONS = 50
"""Newest reasons that are shown."""


def show_results_tab() -> None:
    """Show the tab of results."""
    labels = list(desk().labels.all())
    if not labels:
        st.info(say("no_labels"))
        return
    a, b = labels[-1].versions
    st.text(say("sides", a=a, b=b))
    st.subheader(say("win_rate"))
    show_table([_row(line) for line in win_rates(labels)])
    reasons = [label for label in reversed(labels) if label.reason][:REASONS]
    if reasons:
        st.subheader(say("reasons"))
        rows = [
            {
                say("choice"): ("=", "A", "B")[(one.ranks[0] < one.ranks[1]) + 2 * (one.ranks[1] < one.ranks[0])],
                say("class"): one.prompt_class,
                say("annotator"): one.annotator,
                say("reasons"): one.reason,
            }
            for one in reasons
        ]
        show_table(rows)


def _row(line: CheckpointWinRate) -> dict[str, object]:
    return {
        say("class"): say("everyone") if line.prompt_class == ALL else line.prompt_class,
        say("win_rate"): f"{line.rate.value:.1%}",
        say("interval"): f"{line.rate.low:.1%} – {line.rate.high:.1%}",
        say("b_wins"): line.b_wins,
        say("ties_column"): line.equal,
        say("a_wins"): line.a_wins,
        "n": line.rate.count,
    }

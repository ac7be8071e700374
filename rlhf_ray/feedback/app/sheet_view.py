"""The sheet that people judge on: the browser draws it and holds what is chosen, so that no key waits for a server."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import streamlit as st
from pydantic import ValidationError

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.messages import words_of
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.app.leaving import ADDRESS, Keep, sheets
from rlhf_ray.feedback.app.session import fail, notice_on_sheet, paper, say, visible
from rlhf_ray.feedback.app.work import Work
from rlhf_ray.feedback.labelling.ranking import LONGEST_REASON

KEY = "paper"
"""Of the widget; one for all sheets, so that the browser goes from one to the next in place."""

WORDS = (
    "next_best",
    "ranked",
    "rank_word",
    "overall_word",
    "flags",
    "ties",
    "conflict",
    "tie",
    "order",
    "reason",
    "incomplete",
    "all_tied",
    "writing",
    "unanswered",
    "show_all",
    "show_less",
)
"""Texts that the browser needs at once, by name."""


def _read(name: str) -> str:
    return (Path(__file__).with_name("browser") / name).read_text(encoding="utf-8")


_focus = st.components.v2.component("rlhf_focus", js=_read("focus.js"))
_mount = st.components.v2.component("rlhf_sheet", css=_read("sheet.css"), js=_read("ranking.js") + _read("sheet.js"))


@dataclass(frozen=True)
class Action:
    """A button with its key."""

    act: str
    """What the browser sends."""
    label: str
    """What it says, in the language of the session."""
    key: str
    """As JavaScript names it, letters small."""
    sign: str
    """The key as people name it."""
    primary: bool = False
    """Whether it is what comes next; one of a sheet at most."""
    looks: bool = False
    """Whether it needs a look at the sheet first: pressed at once, it was meant for the sheet before."""
    first: bool = False
    """Whether the key's sign stands before the label."""


def draw_action() -> Action:
    """Return the button that takes a prompt from the pool."""
    return Action("draw", say("random"), "n", "N", primary=True)


def save_action() -> Action:
    """Return the button that stores a ranking."""
    return Action("save", say("save"), "Ctrl+Enter", "Ctrl+Enter", primary=True)


def skip_action() -> Action:
    """Return the button that gives a prompt back."""
    return Action("skip", say("skip"), "s", "S", looks=True)


def undo_action() -> Action:
    """Return the button that takes the last judgement back."""
    return Action("undo", say("undo"), "z", "Z")


def choice_actions(*more: Action) -> list[Action]:
    """Return the buttons that choose between two sides."""
    left = Action("left", say("left_better"), "ArrowLeft", "←", looks=True, first=True)
    equal = Action("equal", say("equal"), "ArrowDown", "↓", looks=True)
    return [left, equal, Action("right", say("right_better"), "ArrowRight", "→", looks=True), *more]


def focus_on_form() -> None:
    """Put the cursor into the form that is shown."""
    _focus(key="focus")


def shown_prompt(prompt: Prompt, prompt_class: str) -> dict[str, object]:
    """Return a prompt as the sheet takes it, turn by turn where it is a conversation."""
    if isinstance(prompt, str):
        turns = [{"role": "", "text": visible(prompt or say("empty_prompt"))}]
    else:
        turns = [{"role": turn["role"], "text": visible(words_of(turn))} for turn in prompt]
    return {"title": say("prompt", name=prompt_class), "turns": turns}


def show_sheet(
    kind: Literal["empty", "rank", "choose"],
    take: Callable[[Work], None],
    *,
    buttons: Sequence[Action],
    choices: Sequence[Action] = (),
    answers: Sequence[dict[str, str]] = (),
    work: dict[str, object] | None = None,
    keep: Keep | None = None,
    refused: Mapping[str, str] = MappingProxyType({}),
    **content: object,
) -> None:
    """Show a sheet.

    Args:
        kind: how it is laid out: nothing to judge, answers to rank, or two sides to choose from.
        take: what becomes of a state that the browser sends about this sheet.
        buttons: at its end.
        choices: above them, larger.
        answers: each with its name, and a text or the address of a picture.
        work: what is on it already, as `Work` has it.
        keep: stores what is on it when the page is left; None where nothing is written on it.
        refused: what is said to keys that do nothing now, by key.
        content: a `prompt`, `question` or `message`, the `flags` with their words, the `highest` quality.
    """
    if keep is not None:
        sheets.expect(paper(), keep)
    data: dict[str, Any] = {
        "paper": paper(),
        "leaving": ADDRESS,
        "refused": dict(refused),
        "kind": kind,
        "words": {name: say(name) for name in WORDS},
        "answers": list(answers),
        "work": work or {},
        "choices": [asdict(one) for one in choices],
        "buttons": [asdict(one) for one in buttons],
        "longest_reason": LONGEST_REASON,
        "notice": notice_on_sheet(),
        **content,
    }
    _mount(key=KEY, data=data, on_work_change=partial(_receive, take))


def _receive(take: Callable[[Work], None]) -> None:
    """Take a state: it is whole, so whatever came before it may be forgotten, and the same one may come twice."""
    try:
        work = Work.model_validate(st.session_state[KEY]["work"])
    except ValidationError as error:
        fail(BadInput(f"the page sent no sheet: {error.errors()[0]['msg']}"))
        return
    # Sent before the page had changed, it is about a sheet that is gone.
    if work.paper == paper() and not sheets.is_older(work):
        st.session_state["number"] = work.number
        take(work)

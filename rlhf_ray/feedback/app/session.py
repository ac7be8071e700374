"""What a browser's session remembers, and the desk that all sessions of the process share."""

import html
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.data.messages import words_of
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.app.texts import Language, text
from rlhf_ray.feedback.clips.desk import ClipDesk, ClipSettings, ClipSheet
from rlhf_ray.feedback.labelling.desk import Desk, DeskSettings, Sheet
from rlhf_ray.feedback.labelling.labels import WorkProgress

NoticeKind = Literal["success", "info", "warning", "error"]


class AnyDesk(Protocol):
    """Interface of a desk to the page around the tabs."""

    store: str
    """Name of the store for messages."""

    @property
    def task(self) -> str:
        """The task, which decides the tabs that are shown."""
        ...

    @property
    def settings(self) -> DeskSettings | ClipSettings:
        """With the language in which the page opens."""
        ...

    def current(self, annotator: str) -> Sheet | ClipSheet | None:
        """Return what the annotator was judging when the page was left; None where there is nothing."""
        ...

    def undo(self, annotator: str) -> Sheet | ClipSheet | None:
        """Take an annotator's last judgement back; None where there is none."""
        ...

    def progress(self, annotator: str) -> WorkProgress:
        """Count what an annotator has judged, and what all annotators have."""
        ...


_desks: list[AnyDesk] = []


def seat(desk: AnyDesk) -> None:
    """Make a desk the one of this process."""
    _desks[:] = [desk]


def seated() -> AnyDesk:
    """Return the desk of this process, whatever is judged there."""
    return _desks[0]


def desk() -> Desk:
    """Return the desk of this process, where answers are judged."""
    found = seated()
    assert isinstance(found, Desk), "tabs of answers are shown for desks of answers alone"
    return found


def clip_desk() -> ClipDesk:
    """Return the desk of this process, where clips are judged."""
    found = seated()
    assert isinstance(found, ClipDesk), "tabs of clips are shown for desks of clips alone"
    return found


def language() -> Language:
    """Return the language of the interface in this visitor's session."""
    chosen: Language = st.session_state.get("language", seated().settings.language)
    return chosen


def say(name: str, /, **values: object) -> str:
    """Return a text of the interface in the session's language; fields without a value stay for the browser."""
    return text(name, language(), **values)


def annotator() -> str:
    """Return the name under which this session's visitor labels."""
    name: str = st.session_state["annotator"]
    return name


def sheet() -> Sheet | None:
    """Return the answers that the annotator is judging; None where there are none."""
    current: Sheet | None = st.session_state.get("sheet")
    return current


def clip_sheet() -> ClipSheet | None:
    """Return the clips that the annotator is judging."""
    current: ClipSheet | None = st.session_state.get("sheet")
    return current


def set_sheet(new: Sheet | ClipSheet | None, why_empty: str = "nothing_yet") -> None:
    """Lay another sheet on the desk, or clear it; the name of the text that says why there is none."""
    st.session_state["sheet"] = new
    st.session_state["why_empty"] = why_empty
    st.session_state["on_desk"] = uuid.uuid4().hex


def paper() -> str:
    """Return the name of what lies on the desk: another one each time, so that what was sent about it is known."""
    name: str = st.session_state.setdefault("on_desk", uuid.uuid4().hex)
    return name


def remember(widget: str, value: Any) -> str:
    """Give a widget its value where the session has forgotten it, as it does when a tab was closed."""
    if widget not in st.session_state:
        st.session_state[widget] = value
    return widget


def notify(name: str, kind: NoticeKind = "success", /, **values: object) -> None:
    """Say what an action did, at the next showing of the page."""
    _leave_notice(kind, say(name, **values))


def fail(error: RlhfError) -> None:
    """Say what went wrong; nothing that was entered is lost."""
    _leave_notice("error", say("failed", error=error))


def _leave_notice(kind: NoticeKind, said: str) -> None:
    number = st.session_state.get("number", 0)
    st.session_state["notice"] = {"id": uuid.uuid4().hex, "number": number, "kind": kind, "text": said}


def show_notice() -> None:
    """Show the notice of the last action, once: good news goes away by itself, the rest at the next action."""
    st.session_state.pop("notice_on_sheet", None)
    notice = st.session_state.pop("notice", None)
    if notice is not None:
        shows: dict[str, Callable[..., object]] = {
            "success": st.toast,
            "warning": st.warning,
            "error": st.error,
            "info": st.info,
        }
        show = shows[notice["kind"]]
        show(plain(notice["text"]))


def notice_on_sheet() -> dict[str, object] | None:
    """Return the notice of the last action that a sheet shows; the browser knows by its id whether it has done so."""
    if "notice" in st.session_state:
        st.session_state["notice_on_sheet"] = st.session_state.pop("notice")
    notice: dict[str, object] | None = st.session_state.get("notice_on_sheet")
    return notice


def clear_notice() -> None:
    """Forget what was said of the last action."""
    st.session_state.pop("notice", None)


def plain(said: str) -> str:
    """Escape text for a widget that reads Markdown: what an error quotes must be shown, not done."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#+-.!|$~:" else c for c in said)


STYLE = """<style>
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; font-size: 1rem; line-height: 1.55;
  max-height: 18rem; overflow: auto;
  background: linear-gradient(white 40%, transparent) 0 0 / 100% 3rem no-repeat local,
    linear-gradient(to top, white 40%, transparent) 0 100% / 100% 3rem no-repeat local,
    linear-gradient(#31333f38, transparent) 0 0 / 100% 1rem no-repeat,
    linear-gradient(to top, #31333f38, transparent) 0 100% / 100% 1rem no-repeat; }
[data-testid="stMainBlockContainer"] { padding-top: 2.6rem; padding-bottom: 1rem; max-width: 84rem; }
[data-testid="stSidebarHeader"] { height: 2rem; padding-bottom: 0; }
[data-testid="InputInstructions"] { display: none; }
[data-stale="true"] { opacity: 1 !important; }
[data-testid="stMainBlockContainer"] { position: relative; }
[data-testid="stLayoutWrapper"]:has(> .st-key-language) { position: absolute; top: 0.5rem; right: 1rem; width: auto;
  z-index: 999991; }
.table { width: 100%; border-collapse: collapse; }
.table :is(th, td) { padding: 0.45rem 0.7rem; border-bottom: 1px solid #d9dbe1; text-align: start; vertical-align: top;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.table th { color: #666b78; font-weight: 400; font-size: 0.9rem; }
@media (max-width: 640px) {
  [data-testid="stMainBlockContainer"] { padding: 4rem 1rem 1rem; }
  [data-testid="stLayoutWrapper"]:has(> .st-key-language) { top: 0.9rem; }
  .table thead { display: none; }
  .table :is(tbody, tr, td) { display: block; }
  .table tr { padding: 0.5rem 0; border-bottom: 1px solid #d9dbe1; }
  .table td { display: flex; justify-content: space-between; gap: 1rem; padding: 0.15rem 0; border: 0; }
  .table td::before { content: attr(data-column); flex: none; max-width: 50%; color: #666b78; font-size: 0.9rem; }
}
</style>"""
"""Line breaks stay, long words break, and each paragraph runs in the direction of its own script. Nothing fades while
the server works. What scrolls has a shadow at each edge behind which more follows. On a phone a row of a table becomes
a block of lines, and the language is chosen beside the button of the sidebar, which is closed there."""

_VISIBLE = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n\r"} | {0x7F: "␡"}
"""Controls have no shape of their own; these are their pictures."""


def show_style() -> None:
    """Send the rules by which texts are laid out."""
    st.html(STYLE)


def visible(text: str) -> str:
    """Return a text with one kind of line end, and pictures of what could not be seen."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_VISIBLE)


def show_text(text: str, key: str) -> None:
    """Show a text as it stands; no character of it is Markdown or HTML."""
    with st.container(border=False, key=key):
        st.html(f'<div class="text" dir="auto">{_escaped(text)}</div>')


def show_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Show rows to be read, all columns of them on a phone too; no character of theirs is Markdown or HTML."""
    names = [html.escape(name) for name in rows[0]]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-column="{name}"><span dir="auto">{_escaped(str(value))}</span></td>'
            for name, value in zip(names, row.values(), strict=True)
        )
        + "</tr>"
        for row in rows
    )
    st.html(f'<table class="table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>')


def _escaped(text: str) -> str:
    # Streamlit would take away the indentation of a block of lines, and white space at the ends.
    return html.escape(visible(text)).replace("\n", "&#10;")


def show_prompt(prompt: Prompt, prompt_class: str, key: str) -> None:
    """Show a prompt, turn by turn where it is a conversation."""
    with st.container(border=True, key=f"{key}-frame"):
        st.caption(plain(say("prompt", name=prompt_class)))
        if isinstance(prompt, str):
            show_text(prompt or say("empty_prompt"), key)
            return
        for number, message in enumerate(prompt):
            st.badge(message["role"] if message["role"].isalnum() else "?")
            show_text(words_of(message), f"{key}-{number}")

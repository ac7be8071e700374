"""What a browser's session remembers, and the desk that all sessions of the process share."""

from typing import Any, Protocol

import streamlit as st

from rlhf_ray.config.errors import RlhfError
from rlhf_ray.feedback.app.texts import Language, text
from rlhf_ray.feedback.clips.desk import ClipDesk, ClipSettings, ClipSheet
from rlhf_ray.feedback.labelling.desk import Desk, Settings, Sheet
from rlhf_ray.feedback.labelling.labels import Progress


class AnyDesk(Protocol):
    """What the page around the tabs needs of a desk."""

    store: str
    """Name of the store for messages."""

    @property
    def task(self) -> str:
        """Which tabs are shown."""
        ...

    @property
    def settings(self) -> Settings | ClipSettings:
        """With the language in which the page opens."""
        ...

    def current(self, annotator: str) -> Sheet | ClipSheet | None:
        """What the annotator was at."""
        ...

    def undo(self, annotator: str) -> Sheet | ClipSheet | None:
        """Take an annotator's last judgement back; None where there is none."""
        ...

    def progress(self, annotator: str) -> Progress:
        """How far an annotator and all of them are."""
        ...


_desks: list[AnyDesk] = []


def seat(desk: AnyDesk) -> None:
    """Make a desk the one of this process."""
    _desks[:] = [desk]


def seated() -> AnyDesk:
    """The desk of this process, whatever is judged there."""
    return _desks[0]


def desk() -> Desk:
    """The desk of this process, where answers are judged."""
    found = seated()
    assert isinstance(found, Desk), "tabs of answers are shown for desks of answers alone"
    return found


def clip_desk() -> ClipDesk:
    """The desk of this process, where clips are judged."""
    found = seated()
    assert isinstance(found, ClipDesk), "tabs of clips are shown for desks of clips alone"
    return found


def language() -> Language:
    """Of this session."""
    chosen: Language = st.session_state.get("language", seated().settings.language)
    return chosen


def say(name: str, /, **values: object) -> str:
    """A text of the interface in the session's language."""
    return text(name, language(), **values)


def annotator() -> str:
    """Whose session it is."""
    name: str = st.session_state["annotator"]
    return name


def sheet() -> Sheet | None:
    """What the annotator is judging."""
    current: Sheet | None = st.session_state.get("sheet")
    return current


def clip_sheet() -> ClipSheet | None:
    """The clips that the annotator is judging."""
    current: ClipSheet | None = st.session_state.get("sheet")
    return current


def put(new: Sheet | ClipSheet | None) -> None:
    """Lay another sheet on the desk; what was chosen on it before becomes the widgets' state."""
    st.session_state["sheet"] = new
    st.session_state["pile"] = st.session_state.get("pile", 0) + 1


def key(name: str, place: int | str = "") -> str:
    """Key of a widget: of this sheet alone, so that no answer inherits what was chosen for another."""
    return f"{name}-{st.session_state.get('pile', 0)}-{place}"


def remember(widget: str, value: Any) -> str:
    """Give a widget its value where the session has forgotten it, as it does when a tab was closed."""
    if widget not in st.session_state:
        st.session_state[widget] = value
    return widget


def notify(name: str, kind: str = "success", /, **values: object) -> None:
    """A notice that stands on the page until the next action."""
    st.session_state["notice"] = (kind, say(name, **values))


def fail(error: RlhfError) -> None:
    """Say what went wrong; nothing that was entered is lost."""
    st.session_state["notice"] = ("error", say("failed", error=error))


def show_notice() -> None:
    """The notice of the last action."""
    kind, said = st.session_state.get("notice", ("", ""))
    if said:
        {"success": st.success, "warning": st.warning, "error": st.error, "info": st.info}[kind](plain(said))


def clear_notice() -> None:
    """An action begins."""
    st.session_state.pop("notice", None)


def plain(said: str) -> str:
    """Text for a widget that reads Markdown: what an error quotes must be shown, not done."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#+-.!|$~:" else c for c in said)

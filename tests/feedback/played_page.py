"""A page whose browser is played by the test: it reads what the sheet shows and sends what a visitor did."""

import json
from pathlib import Path
from typing import Any

from streamlit.proto.WidgetStates_pb2 import WidgetState
from streamlit.testing.v1 import AppTest

from rlhf_ray.feedback.app import server

ENTRY = Path(server.__file__).with_name("entry.py")


class PlayedPage:
    """One visitor's page."""

    def __init__(self, name: str | None = "anna") -> None:
        self.app = AppTest.from_file(str(ENTRY), default_timeout=30)
        if name is not None:
            self.app.query_params["name"] = name
        self._number = 0
        self._work: dict[str, Any] = {}
        self._paper = ""
        self.app.run()

    @property
    def data(self) -> dict[str, Any]:
        """What the sheet was given."""
        found: dict[str, Any] = json.loads(self._component.json)
        return found

    @property
    def notice(self) -> tuple[str, str] | None:
        """Kind and text of the notice on the sheet."""
        notice = self.data["notice"]
        return None if notice is None else (notice["kind"], notice["text"])

    @property
    def work(self) -> dict[str, Any]:
        """What is on the sheet, as the browser holds it."""
        if self.data["paper"] != self._paper:
            self._paper, self._work = self.data["paper"], self.data["work"]
        return self._work

    @property
    def labels(self) -> list[str]:
        """What the buttons of the sheet say."""
        return [one["label"] for one in [*self.data["choices"], *self.data["buttons"]]]

    def write(self, **changes: Any) -> None:
        """Change what is on the sheet, whose state is sent."""
        self._work = self.work | changes
        self._send(None)

    def press(self, act: str) -> None:
        """Press a button of the sheet."""
        shown = {one["act"] for one in [*self.data["choices"], *self.data["buttons"]]}
        assert act in shown, f"{act} is not among {shown}"
        self._send(act)

    def send(self, work: Any) -> None:
        """Send anything at all."""
        states = self.app._tree.get_widget_states()
        states.widgets.append(WidgetState(id=self._component.id, json_value=json.dumps({"work": work})))
        self.app._run(states)

    def _send(self, act: str | None) -> None:
        work = self.work
        self._number += 1
        self.send({"paper": self._paper, "number": self._number, "act": act, **work})
        assert not self.app.exception

    @property
    def _component(self) -> Any:
        (component,) = self.app.get("bidi_component")
        return component.proto  # type: ignore[attr-defined]

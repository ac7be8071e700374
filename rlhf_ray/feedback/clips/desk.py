"""What the page of clips works with: the store, how clips are drawn, and the settings of the page."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from rlhf_ray.feedback.clips.clips import Choice, Clips
from rlhf_ray.feedback.clips.store import AlreadyChosen, ClipPair, ClipStore
from rlhf_ray.feedback.labelling.labels import WorkProgress

Draw = Callable[[Clips], str]
"""A clip as a picture that moves: SVG."""


@dataclass(frozen=True)
class ClipSettings:
    """Settings of the page besides its clips."""

    question: tuple[str, str]
    """What the better clip shows, in Chinese and English."""
    language: Literal["zh", "en"] = "zh"


@dataclass
class ClipSheet:
    """Two clips on an annotator's desk."""

    pair: ClipPair
    left: str
    right: str
    """SVG."""
    submission: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.monotonic)


class ClipDesk:
    """Pairs of one run; all pages of a process share it."""

    task: ClassVar[str] = "clips"

    def __init__(self, store: ClipStore, draw: Draw, settings: ClipSettings) -> None:
        self.settings = settings
        self.store = store.shown
        self._store = store
        self._draw = draw

    def current(self, annotator: str) -> ClipSheet | None:
        """Return two clips to compare, or None while there are none.

        Raises:
            StoreError: the store is busy or gone.
        """
        return self._sheet(self._store.draw(annotator))

    def choose(self, annotator: str, sheet: ClipSheet, choice: Choice) -> bool:
        """Store what was chosen; the same sheet is stored once. False: somebody else was faster.

        Raises:
            StoreError: nothing was stored.
        """
        seconds = time.monotonic() - sheet.began
        try:
            self._store.choose(annotator, sheet.pair.id, sheet.submission, choice, seconds)
        except AlreadyChosen:
            return False
        return True

    def undo(self, annotator: str) -> ClipSheet | None:
        """Take the annotator's last choice back; return its clips, None if there are none."""
        return self._sheet(self._store.undo(annotator))

    def progress(self, annotator: str) -> WorkProgress:
        """Count what an annotator has judged, and what all annotators have."""
        return self._store.progress(annotator)

    def _sheet(self, pair: ClipPair | None) -> ClipSheet | None:
        return None if pair is None else ClipSheet(pair, self._draw(pair.left), self._draw(pair.right))

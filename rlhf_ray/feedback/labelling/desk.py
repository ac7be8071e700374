"""What the pages work with: the store, whoever writes answers, and the settings that they share."""

import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.data.cleaning.prompt_classes import use_case
from rlhf_ray.data.cleaning.texts import joined
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.labelling.assignment import Assignment, Assignments
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.items import Item, Items, NewItem, Overlap, Task
from rlhf_ray.feedback.labelling.labels import Labels, WorkProgress
from rlhf_ray.feedback.labelling.ranking import Draft, shown_order
from rlhf_ray.feedback.labelling.writers import AnswerWriter, NoAnswers, different_answers

LONGEST_PROMPT = 20_000
"""Characters of a prompt that is typed."""


@dataclass(frozen=True)
class DeskSettings:
    """Settings of the pages, from the config."""

    language: Literal["zh", "en"] = "zh"
    answers_per_prompt: int = 4
    seed: int = 0
    lease_seconds: float = 1800
    overlap: Overlap = field(default_factory=Overlap)


@dataclass
class Sheet:
    """A prompt on an annotator's desk, ready to be judged."""

    item: Item
    answers: tuple[str, ...]
    shown: list[int]
    """Places of the answers in the order in which they stand on the page."""
    draft: Draft
    """What is on it now."""
    laid_out: Draft = field(init=False)
    """What was on it when it was laid on the desk."""
    lease_lost: bool = False
    """Whether its annotator was told that somebody else has the prompt now."""
    submission: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.laid_out = self.draft


class Desk:
    """One task of a store with its writers; all pages of a process share it."""

    def __init__(self, database: Database, task: Task, writers: Sequence[AnswerWriter], settings: DeskSettings) -> None:
        """Serve a task; no writers where all answers are in the store, for a comparison one for each side."""
        self.task = task
        self.settings = settings
        self.store = database.shown
        self.items = Items(database, task, settings.overlap)
        self.assignments = Assignments(database, task, settings.lease_seconds)
        self.labels = Labels(database, task)
        self._writers = writers
        self._writing = threading.Lock()
        self._skipped: dict[tuple[str, int], Draft] = {}
        """What was on sheets when they were skipped, for whoever pressed the wrong key."""

    @property
    def answers_any_prompt(self) -> bool:
        """Whether a typed prompt can be answered."""
        return self.task == "label" and bool(self._writers)

    def current(self, annotator: str) -> Sheet | None:
        """Return the answers that were lent to the annotator before and are not judged yet; None where there are none.

        Raises:
            RlhfError: the store is busy, or nobody can answer the prompt.
        """
        assignment = self.assignments.current(annotator)
        return None if assignment is None else self._sheet(annotator, assignment)

    def draw(self, annotator: str) -> Sheet | None:
        """Draw a prompt from the pool, or None when there is none for this annotator.

        Raises:
            RlhfError: the store is busy, or nobody can answer the prompt.
        """
        while (assignment := self.assignments.draw(annotator)) is not None:
            sheet = self._sheet(annotator, assignment)
            if len(set(sheet.answers)) > 1:
                return sheet
            # Two checkpoints that said the same leave nothing to choose.
            self.assignments.skip(annotator, sheet.item.id)
        return None

    def typed(self, annotator: str, prompt: str) -> Sheet:
        """Return answers to a prompt of the annotator's own.

        Raises:
            BadInput: it is empty or too long, or answers come from a file that has none to it.
            RlhfError: the model gave none.
        """
        if not prompt.strip():
            raise BadInput("the prompt is empty")
        if len(prompt) > LONGEST_PROMPT:
            raise BadInput(f"the prompt has {len(prompt)} characters, at most {LONGEST_PROMPT} are taken")
        if not self._writers:
            item = self.items.find(prompt)
            if item is None:
                raise NoAnswers("answers come from a file, which has none to this prompt")
            return self._sheet(annotator, self.assignments.take(annotator, item.id))
        new = NewItem(prompt, use_case(prompt), f"typed for {self._writers[0].version}")
        return self._sheet(annotator, self.assignments.take(annotator, self.items.add_typed(new)))

    def skip(self, annotator: str, sheet: Sheet) -> None:
        """Give the prompt of a sheet back; it does not come to this annotator again unless the skip is taken back.

        Raises:
            StoreError: the store is busy or gone.
        """
        self.assignments.skip(annotator, sheet.item.id)
        self._skipped[annotator, sheet.item.id] = sheet.draft

    def undo(self, annotator: str) -> Sheet | None:
        """Take the annotator's last label or skip back; return its sheet as it was, None if there is none.

        Raises:
            StoreError: the store is busy or gone.
        """
        assignment = self.assignments.undo(annotator)
        if assignment is None:
            return None
        kept = self._skipped.pop((annotator, assignment.item.id), None)
        if assignment.draft is None and kept is not None:
            self.assignments.keep_draft(annotator, assignment.item.id, kept)
            assignment = replace(assignment, draft=kept)
        return self._sheet(annotator, assignment)

    def progress(self, annotator: str) -> WorkProgress:
        """Count what an annotator has labelled, and what all annotators have."""
        return self.labels.progress(annotator)

    def save(self, annotator: str, sheet: Sheet) -> int:
        """Store what is on a sheet; the same sheet is stored once.

        Raises:
            BadInput: an answer has no rank.
            AlreadyLabelled: the annotator labelled this prompt in another window.
            StoreError: nothing was stored.
        """
        seconds = time.monotonic() - sheet.began
        return self.assignments.save(annotator, sheet.item.id, sheet.submission, sheet.draft, sheet.shown, seconds)

    def _sheet(self, annotator: str, assignment: Assignment) -> Sheet:
        item = assignment.item
        if item.answers is None:
            try:
                item = self._answered(item)
            except NoAnswers:
                # The next draw must not bring it again.
                self.assignments.skip(annotator, item.id)
                raise
            except RlhfError:
                self.assignments.release(annotator, item.id)
                raise
        answers = item.answers or ()
        shown = shown_order(item.key, annotator, len(answers), self.settings.seed)
        return Sheet(item, answers, shown, assignment.draft or Draft.empty(len(answers)))

    def _answered(self, item: Item) -> Item:
        # Models answer one prompt at a time; another session may have asked for the same one meanwhile.
        with self._writing:
            item = self.items.get(item.id)
            if item.answers is not None:
                return item
            if self.task == "compare":
                answers = [_one(writer, item.prompt) for writer in self._writers]
                return self.items.answer(item.id, answers, [writer.version for writer in self._writers])
            writer = self._writers[0]
            answers = different_answers(writer, item.prompt, self.settings.answers_per_prompt)
            return self.items.answer(item.id, answers, [writer.version] * len(answers))


def _one(writer: AnswerWriter, prompt: Prompt) -> str:
    answers = writer.write(prompt, 1)
    if not answers:
        raise NoAnswers(f"{writer.version} has no answer to {joined(prompt)[:60]!r}")
    return answers[0]

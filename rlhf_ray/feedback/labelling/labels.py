"""What was judged: to look through, to correct, to delete, to count."""

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, Text, cast, func, insert, not_, or_, select, update

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.labelling.assignment import DELETED, REPLACED, SAVED
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.items import DONE, LEASED, OPEN, Clock, Task, check_unicode
from rlhf_ray.feedback.labelling.ranking import Draft, check_draft, dense
from rlhf_ray.feedback.labelling.tables import items, labels, slots


@dataclass(frozen=True, slots=True)
class Label:
    """A stored label with what it is about."""

    id: int
    item_id: int
    annotator: str
    time: float
    """Seconds since the epoch."""
    seconds: float
    """That the annotator took."""
    prompt: Prompt
    prompt_class: str
    answers: tuple[str, ...]
    versions: tuple[str, ...]
    """What wrote each answer."""
    ranks: tuple[int, ...]
    """From 0, best first; equal ranks are ties."""
    shown: tuple[int, ...]
    """Places of the answers in the order in which they stood on the page."""
    overall: tuple[int | None, ...]
    flags: tuple[tuple[str, ...], ...]
    reason: str

    @property
    def moment(self) -> str:
        """When it was saved: ISO 8601, UTC."""
        return datetime.fromtimestamp(self.time, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Filter:
    """Labels to look at; what is empty lets all through."""

    annotator: str = ""
    text: str = ""
    """Stands in the prompt, an answer or the reason."""
    prompt_class: str = ""
    flagged: bool = False


@dataclass(frozen=True, slots=True)
class WorkProgress:
    """Counts of finished and of open work."""

    mine: int
    """Labels of the annotator."""
    mine_today: int
    """Of the last 24 hours."""
    median_seconds: float | None
    """That the annotator took for the last 20."""
    done: int
    """Slots with a label, of all annotators."""
    total: int
    lent: int
    """Slots that somebody holds now."""


class Labels:
    """Labels of one task in a store."""

    def __init__(self, database: Database, task: Task, clock: Clock = time.time) -> None:
        self._database = database
        self._task = task
        self._clock = clock

    def all(self, wanted: Filter | None = None) -> Iterator[Label]:
        """Yield saved labels in their order of saving; they stream."""
        with self._database.reading() as connection:
            query = self._query(wanted or Filter()).order_by(labels.c.id).execution_options(yield_per=200)
            for row in connection.execute(query):
                yield _label(row)

    def page(self, wanted: Filter, offset: int, limit: int) -> tuple[list[Label], int]:
        """Return some labels, newest first, and how many there are in all."""
        query = self._query(wanted)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(labels.c.id.desc()).offset(offset).limit(limit)).all()
            count = connection.scalar(select(func.count()).select_from(query.subquery())) or 0
        return [_label(row) for row in rows], int(count)

    def get(self, label_id: int) -> Label:
        """Return one label.

        Raises:
            BadInput: it is not there, or not any more.
        """
        with self._database.reading() as connection:
            row = connection.execute(self._query(Filter()).where(labels.c.id == label_id)).one_or_none()
        if row is None:
            raise BadInput(f"label {label_id} is not in the data set, or was changed by somebody else; load it again")
        return _label(row)

    def correct(self, label_id: int, draft: Draft, by: str) -> int:
        """Replace what a label says; the old one stays in the store, out of use. Returns the new id.

        Raises:
            BadInput: incomplete, or the label is not there any more.
        """
        old = self.get(label_id)
        check_draft(draft, len(old.answers))
        ranks = dense(draft.ranks)
        check_unicode(draft.to_json())
        with self._database.writing() as connection:
            self._retire(connection, label_id, REPLACED, by)
            row = {
                **{name: getattr(old, name) for name in ("item_id", "annotator", "time", "seconds")},
                "task": self._task,
                "submission": uuid.uuid4().hex,
                "state": SAVED,
                "shown": list(old.shown),
                "ranks": ranks,
                "overall": list(draft.overall),
                "flags": [list(flags) for flags in draft.flags],
                "reason": draft.reason,
                "changed_by": by,
                "replaces": label_id,
            }
            return connection.execute(insert(labels).values(**row).returning(labels.c.id)).scalar_one()

    def delete(self, label_id: int, by: str) -> None:
        """Take a label out of use; its prompt is to be judged again. The row stays in the store.

        Raises:
            BadInput: it is not there any more.
        """
        old = self.get(label_id)
        with self._database.writing() as connection:
            self._retire(connection, label_id, DELETED, by)
            connection.execute(
                update(slots)
                .where(slots.c.item_id == old.item_id, slots.c.annotator == old.annotator)
                .values(state=OPEN, annotator=None, draft=None, leased=None, expires=None)
            )

    def progress(self, annotator: str) -> WorkProgress:
        """Count what an annotator has labelled, and what all annotators have."""
        mine = (labels.c.task == self._task, labels.c.annotator == annotator, labels.c.state == SAVED)
        with self._database.reading() as connection:
            counted = select(slots.c.state, func.count()).where(slots.c.task == self._task).group_by(slots.c.state)
            states = {str(state): int(count) for state, count in connection.execute(counted)}
            total = connection.scalar(select(func.count()).where(*mine)) or 0
            today = connection.scalar(select(func.count()).where(*mine, labels.c.time > self._clock() - 86400)) or 0
            query = select(labels.c.seconds).where(*mine).order_by(labels.c.id.desc()).limit(20)
            last = sorted(connection.scalars(query))
        return WorkProgress(
            mine=int(total),
            mine_today=int(today),
            median_seconds=last[len(last) // 2] if last else None,
            done=states.get(DONE, 0),
            total=sum(states.values()),
            lent=states.get(LEASED, 0),
        )

    def annotators(self) -> list[str]:
        """List the names of all who have labels."""
        query = select(labels.c.annotator).where(labels.c.task == self._task, labels.c.state == SAVED).distinct()
        with self._database.reading() as connection:
            return sorted(connection.scalars(query))

    def classes(self) -> list[str]:
        """List the classes of prompts."""
        with self._database.reading() as connection:
            return sorted(connection.scalars(select(items.c.prompt_class).where(items.c.task == self._task).distinct()))

    def has_conversations(self) -> bool:
        """Tell whether the prompt of some label is messages, not a text."""
        query = self._query(Filter()).where(not_(cast(items.c.prompt, Text).startswith('"'))).limit(1)
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    def rankings(self) -> list[list[list[int]]]:
        """List the ranks of each prompt, one list for each of its annotators."""
        query = (
            select(labels.c.item_id, labels.c.ranks)
            .where(labels.c.task == self._task, labels.c.state == SAVED)
            .order_by(labels.c.item_id, labels.c.id)
        )
        grouped: dict[int, list[list[int]]] = {}
        with self._database.reading() as connection:
            for item_id, ranks in connection.execute(query):
                grouped.setdefault(item_id, []).append(ranks)
        return list(grouped.values())

    def _retire(self, connection: Any, label_id: int, state: str, by: str) -> None:
        done = connection.execute(
            update(labels).where(labels.c.id == label_id, labels.c.state == SAVED).values(state=state, changed_by=by)
        )
        if done.rowcount != 1:
            raise BadInput(f"label {label_id} was changed by somebody else; load it again")

    def _query(self, wanted: Filter) -> Select[Any]:
        query = (
            select(
                labels,
                items.c.prompt,
                items.c.prompt_class,
                items.c.answers,
                items.c.versions,
            )
            .join(items, items.c.id == labels.c.item_id)
            .where(labels.c.task == self._task, labels.c.state == SAVED)
        )
        if wanted.annotator:
            query = query.where(labels.c.annotator == wanted.annotator)
        if wanted.prompt_class:
            query = query.where(items.c.prompt_class == wanted.prompt_class)
        if wanted.flagged:
            query = query.where(cast(labels.c.flags, Text).contains('"', autoescape=True))
        if wanted.text:
            # Texts are kept as JSON, in which quotes and line breaks are written with a backslash.
            written = json.dumps(wanted.text, ensure_ascii=False)[1:-1]
            columns = (items.c.prompt, items.c.answers, labels.c.reason)
            query = query.where(or_(*(cast(column, Text).contains(written, autoescape=True) for column in columns)))
        return query


def _label(row: Any) -> Label:
    return Label(
        id=row.id,
        item_id=row.item_id,
        annotator=row.annotator,
        time=row.time,
        seconds=row.seconds,
        prompt=row.prompt,
        prompt_class=row.prompt_class,
        answers=tuple(row.answers),
        versions=tuple(row.versions),
        ranks=tuple(row.ranks),
        shown=tuple(row.shown),
        overall=tuple(row.overall),
        flags=tuple(tuple(flags) for flags in row.flags),
        reason=row.reason,
    )

"""Who judges what: prompts are lent to annotators, and labels come back, each stored once.

A prompt has a slot for each annotator that it is meant for. Drawing leases a slot; the lease is renewed by each click
and runs out when its holder leaves, and then the slot goes to somebody else. Whoever saves after that still saves: work
that was done is never thrown away, the prompt merely has one label more.
"""

import random
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, insert, not_, or_, select, update
from sqlalchemy.exc import IntegrityError

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.items import DONE, LEASED, OPEN, Clock, Item, Task, check_unicode, item_of
from rlhf_ray.feedback.labelling.ranking import Draft, check_draft, dense
from rlhf_ray.feedback.labelling.tables import items, labels, skips, slots

SAVED, UNDONE, REPLACED, DELETED = "saved", "undone", "replaced", "deleted"
"""States of a label; only those saved count."""

LONGEST_NAME = 100
"""Characters of an annotator's name."""


class AlreadyLabelled(RlhfError):
    """The annotator has a saved label for this prompt."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """A prompt that an annotator holds, with what was chosen so far."""

    item: Item
    draft: Draft | None


def annotator_name(given: str) -> str:
    """Return a name as it is kept: without white space around, in Unicode's composed form.

    Raises:
        BadInput: empty, too long, or with characters that cannot be seen.
    """
    name = unicodedata.normalize("NFC", given).strip()
    if not name:
        raise BadInput("the name is empty")
    if len(name) > LONGEST_NAME:
        raise BadInput(f"the name has {len(name)} characters, at most {LONGEST_NAME} are allowed")
    if any(unicodedata.category(character)[0] == "C" for character in name):
        raise BadInput("the name holds control characters")
    return name


class Assignments:
    """Lends the prompts of one task and takes labels."""

    def __init__(
        self, database: Database, task: Task, lease_seconds: float, clock: Clock = time.time, seed: int | None = None
    ) -> None:
        """Lend prompts for `lease_seconds`, drawn by `seed`; None draws anew in each process."""
        self._database = database
        self._task = task
        self._lease = lease_seconds
        self._clock = clock
        self._random = random.Random(seed)

    def current(self, annotator: str) -> Assignment | None:
        """Return the prompt that an annotator holds, the newest if several; its lease begins anew."""
        with self._database.writing() as connection:
            row = connection.execute(
                self._slots()
                .where(slots.c.annotator == annotator, slots.c.state == LEASED)
                .order_by(slots.c.leased.desc(), slots.c.id.desc())
                .limit(1)
            ).one_or_none()
            return None if row is None else self._lend(connection, row.slot_id, row, annotator)

    def draw(self, annotator: str) -> Assignment | None:
        """Lend a prompt at random: one that nobody holds, and that this annotator neither labelled nor skipped.

        Returns:
            None when there is none.

        Raises:
            StoreError: the store is busy or gone.
        """
        with self._database.writing() as connection:
            row = self._free(connection, annotator)
            return None if row is None else self._lend(connection, row.slot_id, row, annotator)

    def take(self, annotator: str, item_id: int) -> Assignment:
        """Lend a certain prompt, beyond the annotators that it is meant for if need be.

        Raises:
            AlreadyLabelled: the annotator labelled it.
        """
        with self._database.writing() as connection:
            return self._take(connection, annotator, item_id)

    def keep_draft(self, annotator: str, item_id: int, draft: Draft) -> bool:
        """Keep what was chosen so far, and renew the lease. Returns False if the prompt is with somebody else now.

        Raises:
            BadInput: the draft is too long, or not valid Unicode.
        """
        check_unicode(draft.to_json())
        check_draft(draft, len(draft.ranks))
        with self._database.writing() as connection:
            done = connection.execute(
                update(slots)
                .where(slots.c.item_id == item_id, slots.c.annotator == annotator, slots.c.state == LEASED)
                .values(draft=draft.to_json(), expires=self._clock() + self._lease)
            )
            return done.rowcount == 1

    def save(
        self,
        annotator: str,
        item_id: int,
        submission: str,
        draft: Draft,
        shown: Sequence[int],
        seconds: float,
    ) -> int:
        """Store a label and return its id. The same submission again returns the same id and stores nothing.

        Args:
            annotator: whose label.
            item_id: what was judged.
            submission: chosen by the page, once for each saving.
            draft: complete: every answer has a rank.
            shown: places of the answers in the order in which they stood on the page.
            seconds: that the annotator took.

        Raises:
            BadInput: incomplete, or not what a page can send.
            AlreadyLabelled: another label of this annotator is there.
            StoreError: the store is busy or gone; nothing was stored.
        """
        ranks = dense(draft.ranks)
        check_unicode(draft.to_json())
        try:
            with self._database.writing() as connection:
                known = connection.scalar(select(labels.c.id).where(labels.c.submission == submission))
                if known is not None:
                    return int(known)
                answers = connection.scalar(select(items.c.answers).where(items.c.id == item_id)) or []
                check_draft(draft, len(answers))
                if sorted(shown) != list(range(len(answers))):
                    raise BadInput(f"shown: {list(shown)} is no order of {len(answers)} answers")
                self._finish(connection, annotator, item_id)
                row = self._row(annotator, item_id, submission, ranks, draft, shown, seconds)
                return connection.execute(insert(labels).values(**row).returning(labels.c.id)).scalar_one()
        except IntegrityError:
            with self._database.reading() as connection:
                known = connection.scalar(select(labels.c.id).where(labels.c.submission == submission))
            if known is not None:
                return int(known)
            raise AlreadyLabelled("a label of yours for this prompt is stored already") from None

    def skip(self, annotator: str, item_id: int) -> None:
        """Give a prompt back; it does not come to this annotator again, but to others."""
        with self._database.writing() as connection:
            connection.execute(delete(skips).where(skips.c.item_id == item_id, skips.c.annotator == annotator))
            connection.execute(insert(skips).values(item_id=item_id, annotator=annotator, time=self._clock()))
            self._give_back(connection, annotator, item_id)

    def release(self, annotator: str, item_id: int) -> None:
        """Give a prompt back; anybody may get it."""
        with self._database.writing() as connection:
            self._give_back(connection, annotator, item_id)

    def undo(self, annotator: str) -> Assignment | None:
        """Take back what the annotator did last, a label or a skip. Its prompt is lent again, with a label's choices.

        Returns:
            None when nothing is left to take back.
        """
        with self._database.writing() as connection:
            last = connection.execute(
                select(labels)
                .where(labels.c.task == self._task, labels.c.annotator == annotator, labels.c.state == SAVED)
                .order_by(labels.c.id.desc())
                .limit(1)
            ).one_or_none()
            skipped = self._last_skip(connection, annotator, since=0.0 if last is None else last.time)
            if skipped is not None:
                return self._take(connection, annotator, skipped)
            if last is None:
                return None
            connection.execute(update(labels).where(labels.c.id == last.id).values(state=UNDONE))
            draft = draft_of(last)
            connection.execute(
                update(slots)
                .where(slots.c.item_id == last.item_id, slots.c.annotator == annotator)
                .values(state=LEASED, draft=draft.to_json())
            )
            row = connection.execute(
                self._slots().where(slots.c.item_id == last.item_id, slots.c.annotator == annotator)
            ).one()
            return self._lend(connection, row.slot_id, row, annotator)

    def _last_skip(self, connection: Connection, annotator: str, since: float) -> int | None:
        """Find the prompt that was skipped last, after a moment; None where there is none.

        One without two different answers was never on a page: it was passed over when it was drawn.
        """
        rows = connection.execute(
            select(skips.c.item_id, items.c.answers)
            .join(items, items.c.id == skips.c.item_id)
            .where(items.c.task == self._task, skips.c.annotator == annotator, skips.c.time > since)
            .order_by(skips.c.time.desc())
        )
        return next((int(row.item_id) for row in rows if len(set(row.answers or ())) > 1), None)

    def _take(self, connection: Connection, annotator: str, item_id: int) -> Assignment:
        """Lend a certain prompt: in the annotator's own slot, in one that nobody holds, or in a new one."""
        connection.execute(delete(skips).where(skips.c.item_id == item_id, skips.c.annotator == annotator))
        of_item = self._slots().where(slots.c.item_id == item_id)
        held = connection.execute(of_item.where(slots.c.annotator == annotator)).one_or_none()
        if held is not None and held.state == DONE:
            raise AlreadyLabelled("you have labelled this prompt already; it is in the data set")
        if held is None:
            held = connection.execute(self._unlocked(of_item.where(slots.c.state == OPEN).limit(1))).one_or_none()
        if held is None:
            values = {"item_id": item_id, "task": self._task, "state": OPEN, "draw": 0.0}
            added = connection.execute(insert(slots).values(**values).returning(slots.c.id)).scalar_one()
            held = connection.execute(of_item.where(slots.c.id == added)).one()
        return self._lend(connection, held.slot_id, held, annotator)

    def _unlocked(self, query: Select[Any]) -> Select[Any]:
        """Pass over slots that another session is taking at this moment, where the database can."""
        return query.with_for_update(skip_locked=True, of=slots) if self._database.skips_locked_rows else query

    def _slots(self) -> Select[Any]:
        columns = (slots.c.id.label("slot_id"), slots.c.state, slots.c.draft, items)
        return select(*columns).join(items, items.c.id == slots.c.item_id).where(slots.c.task == self._task)

    def _free(self, connection: Connection, annotator: str) -> Any | None:
        """Find a slot to lend: from a random place of the order, from its beginning, or with a lease that ran out."""
        seen = select(slots.c.item_id).where(slots.c.annotator == annotator)
        skipped = select(skips.c.item_id).where(skips.c.annotator == annotator)
        mine = or_(slots.c.item_id.in_(seen), slots.c.item_id.in_(skipped))
        start = self._random.random()
        is_open, ran_out = slots.c.state == OPEN, and_(slots.c.state == LEASED, slots.c.expires < self._clock())
        for wanted in (and_(is_open, slots.c.draw >= start), is_open, ran_out):
            query = self._slots().where(wanted, not_(mine)).order_by(slots.c.draw).limit(1)
            row = connection.execute(self._unlocked(query)).one_or_none()
            if row is not None:
                if row.state == LEASED:
                    # What its last holder had chosen says nothing to the next.
                    connection.execute(update(slots).where(slots.c.id == row.slot_id).values(draft=None))
                return row
        return None

    def _lend(self, connection: Connection, slot_id: int, row: Any, annotator: str) -> Assignment:
        now = self._clock()
        before = connection.execute(select(slots.c.annotator, slots.c.draft).where(slots.c.id == slot_id)).one()
        connection.execute(
            update(slots)
            .where(slots.c.id == slot_id)
            .values(state=LEASED, annotator=annotator, leased=now, expires=now + self._lease)
        )
        kept = before.draft if before.annotator == annotator else None
        return Assignment(item_of(row), None if kept is None else Draft.from_json(kept))

    def _finish(self, connection: Connection, annotator: str, item_id: int) -> None:
        """Mark the annotator's slot as done; where the lease ran out and another has it, there is one slot more."""
        done = connection.execute(
            update(slots)
            .where(slots.c.item_id == item_id, slots.c.annotator == annotator)
            .values(state=DONE, draft=None, expires=None)
        )
        if done.rowcount == 0:
            values = {"item_id": item_id, "task": self._task, "state": DONE, "draw": 0.0, "annotator": annotator}
            connection.execute(insert(slots).values(**values))

    def _give_back(self, connection: Connection, annotator: str, item_id: int) -> None:
        connection.execute(
            update(slots)
            .where(slots.c.item_id == item_id, slots.c.annotator == annotator, slots.c.state == LEASED)
            .values(state=OPEN, annotator=None, draft=None, leased=None, expires=None)
        )

    def _row(
        self,
        annotator: str,
        item_id: int,
        submission: str,
        ranks: list[int],
        draft: Draft,
        shown: Sequence[int],
        seconds: float,
    ) -> dict[str, Any]:
        return {
            "item_id": item_id,
            "task": self._task,
            "annotator": annotator,
            "submission": submission,
            "state": SAVED,
            "time": self._clock(),
            "seconds": seconds,
            "ranks": ranks,
            "shown": list(shown),
            "overall": list(draft.overall),
            "flags": [list(flags) for flags in draft.flags],
            "reason": draft.reason,
        }


def draft_of(label: Any) -> Draft:
    """Read what was chosen for a label from its row of the table."""
    flags = tuple(tuple(flags) for flags in label.flags)
    return Draft(tuple(rank + 1 for rank in label.ranks), tuple(label.overall), flags, label.reason)

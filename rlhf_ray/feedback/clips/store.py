"""Pairs of clips that wait for people, and what people chose, in a store of labels."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.feedback.clips.clips import CHOICES, Choice, Clips
from rlhf_ray.feedback.labelling.assignment import SAVED, UNDONE
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.items import DONE, LEASED, OPEN, Clock
from rlhf_ray.feedback.labelling.labels import WorkProgress
from rlhf_ray.feedback.labelling.tables import clip_choices, clip_pairs


class AlreadyChosen(RlhfError):
    """Somebody else has judged this pair meanwhile."""


@dataclass(frozen=True)
class ClipPair:
    """Two clips for a judge, by which they are known to their run."""

    id: int
    number: int
    left: Clips
    right: Clips
    """Each of one clip. Their true return is not kept: no judge shall see it."""


class ClipStore:
    """Pairs of one run in a store. Safe to use from several threads, and from several processes at once."""

    def __init__(self, database: Database, run: str, lease_seconds: float = 600, clock: Clock = time.time) -> None:
        self._database = database
        self._run = run
        self._lease = lease_seconds
        self._clock = clock

    @property
    def shown(self) -> str:
        """Name of the store for messages."""
        return self._database.shown

    def add(self, pairs: Iterable[tuple[int, Clips, Clips]]) -> None:
        """Add pairs by their number; those that are there already are left as they are.

        Raises:
            StoreError: the store did not take them.
        """
        with self._database.writing() as connection:
            known = set(connection.scalars(select(clip_pairs.c.number).where(clip_pairs.c.run == self._run)))
            rows = [
                {
                    "run": self._run,
                    "number": number,
                    "left": _plain(left),
                    "right": _plain(right),
                    "created": self._clock(),
                    "state": OPEN,
                }
                for number, left, right in pairs
                if number not in known
            ]
            if rows:
                connection.execute(insert(clip_pairs), rows)

    def waiting(self) -> int:
        """Count the pairs that nobody has judged yet."""
        query = select(func.count()).where(clip_pairs.c.run == self._run, clip_pairs.c.state != DONE)
        with self._database.reading() as connection:
            return int(connection.scalar(query) or 0)

    def numbers(self) -> list[int]:
        """List the numbers of all pairs."""
        with self._database.reading() as connection:
            return sorted(connection.scalars(select(clip_pairs.c.number).where(clip_pairs.c.run == self._run)))

    def chosen(self) -> list[tuple[ClipPair, Choice]]:
        """List the pairs that are judged, by their number, with what was chosen."""
        query = (
            select(clip_pairs, clip_choices.c.choice)
            .join(clip_choices, clip_choices.c.pair_id == clip_pairs.c.id)
            .where(clip_pairs.c.run == self._run, clip_choices.c.state == SAVED)
            .order_by(clip_pairs.c.number)
        )
        with self._database.reading() as connection:
            return [(_pair(row), row.choice) for row in connection.execute(query)]

    def draw(self, annotator: str) -> ClipPair | None:
        """Lend a pair: the one that the annotator holds, else the oldest that nobody does. None: there is none.

        Raises:
            StoreError: the store is busy or gone.
        """
        now = self._clock()
        mine = and_(clip_pairs.c.state == LEASED, clip_pairs.c.annotator == annotator)
        free = or_(clip_pairs.c.state == OPEN, and_(clip_pairs.c.state == LEASED, clip_pairs.c.expires < now))
        with self._database.writing() as connection:
            for wanted in (mine, free):
                query = select(clip_pairs).where(clip_pairs.c.run == self._run, wanted).order_by(clip_pairs.c.number)
                if self._database.skips_locked_rows:
                    query = query.with_for_update(skip_locked=True)
                row = connection.execute(query.limit(1)).one_or_none()
                if row is not None:
                    self._lend(connection, row.id, annotator)
                    return _pair(row)
        return None

    def choose(self, annotator: str, pair_id: int, submission: str, choice: Choice, seconds: float) -> None:
        """Store a choice. The same submission again stores nothing.

        Raises:
            BadInput: there is no such choice.
            AlreadyChosen: the lease ran out, and somebody else judged the pair.
            StoreError: the store is busy or gone; nothing was stored.
        """
        if choice not in CHOICES:
            raise BadInput(f"no choice is named {choice!r}; choices are {', '.join(CHOICES)}")
        row = {"pair_id": pair_id, "annotator": annotator, "submission": submission, "choice": choice}
        try:
            with self._database.writing() as connection:
                known = connection.scalar(select(clip_choices.c.id).where(clip_choices.c.submission == submission))
                if known is None:
                    row |= {"state": SAVED, "time": self._clock(), "seconds": seconds}
                    connection.execute(insert(clip_choices).values(**row))
                    self._set(connection, pair_id, state=DONE, annotator=annotator, expires=None)
        except IntegrityError:
            raise AlreadyChosen("somebody else has judged these clips meanwhile; here are others") from None

    def undo(self, annotator: str) -> ClipPair | None:
        """Take the annotator's last choice back and lend its pair again. None: there is none."""
        last = (
            select(clip_choices.c.id, clip_choices.c.pair_id)
            .join(clip_pairs, clip_choices.c.pair_id == clip_pairs.c.id)
            .where(clip_pairs.c.run == self._run)
            .where(clip_choices.c.annotator == annotator, clip_choices.c.state == SAVED)
            .order_by(clip_choices.c.id.desc())
            .limit(1)
        )
        with self._database.writing() as connection:
            found = connection.execute(last).one_or_none()
            if found is None:
                return None
            connection.execute(update(clip_choices).where(clip_choices.c.id == found.id).values(state=UNDONE))
            # What else the annotator holds goes back, or it would come first.
            held = and_(
                clip_pairs.c.run == self._run, clip_pairs.c.annotator == annotator, clip_pairs.c.state == LEASED
            )
            connection.execute(update(clip_pairs).where(held).values(state=OPEN, annotator=None, expires=None))
            self._lend(connection, found.pair_id, annotator)
            return _pair(connection.execute(select(clip_pairs).where(clip_pairs.c.id == found.pair_id)).one())

    def progress(self, annotator: str) -> WorkProgress:
        """Count what an annotator has judged, and what all annotators have."""
        mine = (
            select(clip_choices.c.time, clip_choices.c.seconds)
            .join(clip_pairs, clip_choices.c.pair_id == clip_pairs.c.id)
            .where(clip_pairs.c.run == self._run)
            .where(clip_choices.c.annotator == annotator, clip_choices.c.state == SAVED)
            .order_by(clip_choices.c.id)
        )
        counted = select(clip_pairs.c.state, func.count()).where(clip_pairs.c.run == self._run)
        with self._database.reading() as connection:
            own = connection.execute(mine).all()
            states = {
                str(state): int(count) for state, count in connection.execute(counted.group_by(clip_pairs.c.state))
            }
        last = sorted(row.seconds for row in own[-20:])
        return WorkProgress(
            mine=len(own),
            mine_today=sum(row.time > self._clock() - 86400 for row in own),
            median_seconds=last[len(last) // 2] if last else None,
            done=states.get(DONE, 0),
            total=sum(states.values()),
            lent=states.get(LEASED, 0),
        )

    def _lend(self, connection: Connection, pair_id: int, annotator: str) -> None:
        self._set(connection, pair_id, state=LEASED, annotator=annotator, expires=self._clock() + self._lease)

    def _set(self, connection: Connection, pair_id: int, **values: Any) -> None:
        connection.execute(update(clip_pairs).where(clip_pairs.c.id == pair_id).values(**values))


def _plain(clip: Clips) -> dict[str, Any]:
    """Return one clip as JSON has it; float32 numbers come back as they were."""
    return {"observations": clip.observations[0].tolist(), "actions": clip.actions[0].tolist()}


def _pair(row: Any) -> ClipPair:
    return ClipPair(row.id, row.number, _clip(row.left), _clip(row.right))


def _clip(kept: dict[str, Any]) -> Clips:
    observations, actions = (np.asarray([kept[name]], dtype=np.float32) for name in ("observations", "actions"))
    return Clips(observations, actions, np.full(1, np.nan, dtype=np.float32))

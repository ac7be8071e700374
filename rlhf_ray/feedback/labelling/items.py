"""What is to be judged: prompts with their answers, and a slot for each annotator that one is meant for."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, func, insert, select, update

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.records import Prompt
from rlhf_ray.feedback.labelling.database import Database
from rlhf_ray.feedback.labelling.tables import items, slots

Task = Literal["label", "compare"]

OPEN, LEASED, DONE = "open", "leased", "done"
"""States of a slot."""

BATCH = 500
"""Prompts that one transaction adds: other writers wait for no more."""

Clock = Callable[[], float]
"""Seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class NewItem:
    """A prompt to add, with its answers where they are there already."""

    prompt: Prompt
    prompt_class: str
    source: str
    """Where answers come from: the same prompt may be answered by several."""
    answers: tuple[str, ...] | None = None
    versions: tuple[str, ...] | None = None
    """What wrote each answer."""

    def key(self, task: Task) -> str:
        """Hash by which the item is known."""
        content = [task, self.prompt, self.source, self.answers]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt in the store."""

    id: int
    key: str
    prompt: Prompt
    prompt_class: str
    answers: tuple[str, ...] | None
    versions: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Overlap:
    """Number of annotators that a prompt is meant for: one, or several for a share of the prompts."""

    share: float = 0.0
    annotators: int = 2
    seed: int = 0

    def wanted(self, key: str) -> int:
        """Count the annotators for an item; decided by its key, so that it never changes."""
        if self.share <= 0:
            return 1
        digest = hashlib.sha256(f"{self.seed}\0{key}".encode()).digest()
        return self.annotators if int.from_bytes(digest[:8], "big") < self.share * 2**64 else 1


class Items:
    """Prompts of one task in a store."""

    def __init__(self, database: Database, task: Task, overlap: Overlap, clock: Clock = time.time) -> None:
        self._database = database
        self._task = task
        self._overlap = overlap
        self._clock = clock

    def add(self, new: Iterable[NewItem]) -> int:
        """Add prompts; those that are there already are left as they are. Returns how many were new.

        Raises:
            BadInput: a text that is not valid Unicode.
            StoreError: the store did not take them.
        """
        added, batch = 0, list[NewItem]()
        for one in new:
            batch.append(one)
            if len(batch) == BATCH:
                added += self._add(batch)
                batch.clear()
        return added + self._add(batch)

    def add_typed(self, new: NewItem) -> int:
        """Add a prompt that an annotator typed, for that annotator alone; returns its id, also of one that is there."""
        with self._database.writing() as connection:
            self._insert(connection, [new], wanted=lambda _: 0)
            return int(connection.scalar(select(items.c.id).where(items.c.key == new.key(self._task))) or 0)

    def get(self, item_id: int) -> Item:
        """Return one item.

        Raises:
            BadInput: there is none of this id.
        """
        with self._database.reading() as connection:
            row = connection.execute(select(items).where(items.c.id == item_id)).one_or_none()
        if row is None:
            raise BadInput(f"the store has no prompt {item_id}")
        return item_of(row)

    def answer(self, item_id: int, answers: Sequence[str], versions: Sequence[str]) -> Item:
        """Keep the answers of a prompt that has none. Where another session was first, its answers stay.

        Raises:
            StoreError: the store did not take them.
        """
        content = {"answers": list(answers), "versions": list(versions)}
        check_unicode(content)
        with self._database.writing() as connection:
            connection.execute(update(items).where(items.c.id == item_id, items.c.answers.is_(None)).values(**content))
        return self.get(item_id)

    def find(self, prompt: Prompt) -> Item | None:
        """Find the first item with this prompt."""
        with self._database.reading() as connection:
            found = connection.execute(
                select(items).where(items.c.task == self._task).order_by(items.c.id).execution_options(yield_per=200)
            )
            return next((item_of(row) for row in found if row.prompt == prompt), None)

    def count(self) -> int:
        """Count the prompts in the store."""
        with self._database.reading() as connection:
            return int(connection.scalar(select(func.count()).where(items.c.task == self._task)) or 0)

    def _add(self, batch: Sequence[NewItem]) -> int:
        with self._database.writing() as connection:
            return self._insert(connection, batch, wanted=self._overlap.wanted)

    def _insert(self, connection: Connection, batch: Sequence[NewItem], wanted: Callable[[str], int]) -> int:
        by_key = {one.key(self._task): one for one in batch}
        there = set(connection.scalars(select(items.c.key).where(items.c.key.in_(list(by_key)))))
        rows = [self._row(key, one) for key, one in by_key.items() if key not in there]
        if not rows:
            return 0
        connection.execute(insert(items), rows)
        ids = connection.execute(select(items.c.id, items.c.key).where(items.c.key.in_([row["key"] for row in rows])))
        places = [
            {"item_id": row.id, "task": self._task, "state": OPEN, "draw": _draw(row.key, number)}
            for row in ids
            for number in range(wanted(row.key))
        ]
        if places:
            connection.execute(insert(slots), places)
        return len(rows)

    def _row(self, key: str, one: NewItem) -> dict[str, Any]:
        content = {
            "prompt": one.prompt,
            "prompt_class": one.prompt_class,
            "answers": None if one.answers is None else list(one.answers),
            "versions": None if one.versions is None else list(one.versions),
        }
        check_unicode(content)
        return {"key": key, "task": self._task, "created": self._clock(), **content}


def item_of(row: Any) -> Item:
    """Make an item of its row of the table."""
    answers = None if row.answers is None else tuple(row.answers)
    versions = None if row.versions is None else tuple(row.versions)
    return Item(row.id, row.key, row.prompt, row.prompt_class, answers, versions)


def check_unicode(content: Any) -> None:
    """Refuse what no file could hold.

    Raises:
        BadInput: half of a surrogate pair stands alone.
    """
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"a text is not valid Unicode (character {error.start} of {error.object[:40]!r})") from None


def _draw(key: str, number: int) -> float:
    """Tell where in the order of drawing a slot stands; those of one prompt stand apart."""
    return random.Random(f"{key}/{number}").random()

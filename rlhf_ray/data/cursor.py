"""Which rows come next: passes over a data set in an order that the seed fixes, and a state to go on from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Int64

from rlhf_ray.config.errors import BadInput


class Cursor:
    """Hands out row ids, each once in every epoch, in an order shuffled anew in each.

    A row is in flight from `take` until `finish`. Rows in flight when the state is saved are handed out first after it
    is loaded, so that none is lost.
    """

    def __init__(self, ids: Sequence[str], seed: int, shuffle: bool = True, fingerprint: str = "") -> None:
        """Deal unique ids; `fingerprint` is of the data, so that a state of other data is refused.

        Raises:
            ValueError: no ids, or one that comes twice.
        """
        if not ids or len(set(ids)) != len(ids):
            raise ValueError("a cursor needs at least one id, and each only once")
        self._ids = list(ids)
        self._seed = seed
        self._shuffle = shuffle
        self._fingerprint = fingerprint
        self._epoch = 0
        self._position = 0
        self._again: list[str] = []
        self._in_flight: list[str] = []
        self._order = self._order_of(0)

    @property
    def epoch(self) -> float:
        """Passes made over the data, with the fraction of the present one."""
        return self._epoch + self._position / len(self._ids)

    @property
    def in_flight(self) -> list[str]:
        """Ids taken and not finished, in the order in which they were taken."""
        return [*self._in_flight, *self._again]

    def take(self, count: int) -> list[str]:
        """Return the next `count` ids; past the end of an epoch the next one begins."""
        taken, self._again = self._again[:count], self._again[count:]
        while len(taken) < count:
            if self._position == len(self._ids):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._order_of(self._epoch)
            taken.append(self._ids[self._order[self._position]])
            self._position += 1
        self._in_flight += taken
        return taken

    def finish(self, ids: Iterable[str]) -> None:
        """Mark the rows whose result was used."""
        for row in ids:
            self._in_flight.remove(row)

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs, as JSON can hold it."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "in_flight": self.in_flight,
            "rows": len(self._ids),
            "fingerprint": self._fingerprint,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state; the same rows follow as would have followed then, those in flight first.

        Raises:
            BadInput: the state belongs to other data.
        """
        if state["rows"] != len(self._ids) or state["fingerprint"] != self._fingerprint:
            raise BadInput(
                f"the data has changed since the checkpoint was written ({state['rows']} rows then, {len(self._ids)} "
                "now, or other texts or another tokenizer); resume with the same data, or start a new run"
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._again, self._in_flight = list(state["in_flight"]), []
        self._order = self._order_of(self._epoch)

    def _order_of(self, epoch: int) -> Int64[np.ndarray, " rows"]:
        rows = np.arange(len(self._ids))
        return np.random.default_rng([self._seed, epoch]).permutation(rows) if self._shuffle else rows


@dataclass(frozen=True, slots=True)
class Passes:
    """Steps of a job that goes over its rows `epochs` times, a fraction allowed; the last batch may be short."""

    rows: int
    epochs: float
    batch_size: int

    @property
    def total(self) -> int:
        """Rows of all passes, at least one."""
        return max(1, round(self.rows * self.epochs))

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return math.ceil(self.total / self.batch_size)

    def rows_of(self, step: int) -> int:
        """Count the rows of one step, counted from 0."""
        return min(self.batch_size, self.total - step * self.batch_size)

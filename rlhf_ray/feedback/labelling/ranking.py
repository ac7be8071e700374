"""The rules of ranking: what is missing, who holds a rank already, and the order as it will be saved."""

import hashlib
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from rlhf_ray.config.errors import BadInput

FLAGS = ("harmful", "private", "off_task")
"""What may be said about an answer besides its quality: harmful, holds private data, does something else (Ouyang et al.
2022, table 3, in three words)."""

LOWEST, HIGHEST = 1, 7
"""Overall quality, a Likert scale (Ouyang et al. 2022)."""

LONGEST_REASON = 20_000
"""Characters of a reason; a page that sends more is broken or hostile."""


@dataclass(frozen=True, slots=True)
class Draft:
    """Ranks and grades that an annotator has given so far; each list follows the answers' own order."""

    ranks: tuple[int | None, ...]
    """From 1, best first; equal ranks are ties, None is not ranked yet."""
    overall: tuple[int | None, ...]
    """1 to 7, or None."""
    flags: tuple[tuple[str, ...], ...]
    """Of `FLAGS`."""
    reason: str = ""

    @classmethod
    def empty(cls, answers: int) -> Self:
        """Make a draft that says nothing about so many answers."""
        return cls((None,) * answers, (None,) * answers, ((),) * answers)

    def to_json(self) -> dict[str, Any]:
        """Return the draft as values that JSON can hold."""
        return {
            "ranks": list(self.ranks),
            "overall": list(self.overall),
            "flags": [list(flags) for flags in self.flags],
            "reason": self.reason,
        }

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        flags = tuple(tuple(flags) for flags in kept["flags"])
        return cls(tuple(kept["ranks"]), tuple(kept["overall"]), flags, kept["reason"])


@dataclass(frozen=True, slots=True)
class Conflict:
    """An answer with a rank that an earlier one holds."""

    place: int
    holder: int
    rank: int


def unranked(ranks: Sequence[int | None]) -> list[int]:
    """List the places of answers without a rank."""
    return [place for place, rank in enumerate(ranks) if rank is None]


def conflicts(ranks: Sequence[int | None], shown: Sequence[int]) -> list[Conflict]:
    """List answers whose rank another holds: of those with one rank, the first as shown is the holder."""
    holders: dict[int, int] = {}
    found = []
    for place in shown:
        rank = ranks[place]
        if rank is not None and holders.setdefault(rank, place) != place:
            found.append(Conflict(place, holders[rank], rank))
    return found


def dense(ranks: Sequence[int | None]) -> list[int]:
    """Return ranks as they are saved: from 0, without gaps; 1, 1, 4 becomes 0, 0, 1.

    Raises:
        BadInput: an answer has none.
    """
    known = [rank for rank in ranks if rank is not None]
    if len(known) < len(ranks):
        raise BadInput(f"{len(ranks) - len(known)} of {len(ranks)} answers have no rank yet")
    order = sorted(set(known))
    return [order.index(rank) for rank in known]


def order_line(ranks: Sequence[int | None], names: Sequence[str]) -> str:
    """Write the order in signs: `B > A = C`, and after `?` what has no rank yet."""
    by_rank: dict[int, list[str]] = {}
    for name, rank in sorted(zip(names, ranks, strict=True), key=lambda pair: pair[0]):
        if rank is not None:
            by_rank.setdefault(rank, []).append(name)
    groups = [" = ".join(by_rank[rank]) for rank in sorted(by_rank)]
    missing = sorted(name for name, rank in zip(names, ranks, strict=True) if rank is None)
    return " ".join([" > ".join(groups), *([f"? {', '.join(missing)}"] if missing else [])]).strip()


def shown_order(key: str, annotator: str, answers: int, seed: int) -> list[int]:
    """Return the order in which an annotator sees answers: the same at every visit, another for each of them."""
    digest = hashlib.sha256(f"{seed}\0{annotator}\0{key}".encode()).digest()
    order = list(range(answers))
    random.Random(digest).shuffle(order)
    return order


def names_as_shown(shown: Sequence[int]) -> list[str]:
    """Return the letter of each answer, in the answers' own order: A stands first on the page."""
    return [string.ascii_uppercase[shown.index(place)] for place in range(len(shown))]


def check_draft(draft: Draft, answers: int) -> None:
    """Check what a page sent, whatever it was.

    Raises:
        BadInput: it does not fit the answers, or holds what the page does not offer.
    """
    if not len(draft.ranks) == len(draft.overall) == len(draft.flags) == answers:
        raise BadInput(f"a label of {len(draft.ranks)} ranks for {answers} answers")
    if any(rank is not None and not 1 <= rank <= answers for rank in draft.ranks):
        raise BadInput(f"ranks lie between 1 and {answers}, not {list(draft.ranks)}")
    if any(score is not None and not LOWEST <= score <= HIGHEST for score in draft.overall):
        raise BadInput(f"overall quality lies between {LOWEST} and {HIGHEST}, not {list(draft.overall)}")
    unknown = sorted({flag for flags in draft.flags for flag in flags} - set(FLAGS))
    if unknown:
        raise BadInput(f"no flag is named {unknown[0]!r}; flags are {', '.join(FLAGS)}")
    if len(draft.reason) > LONGEST_REASON:
        raise BadInput(f"the reason has {len(draft.reason)} characters, at most {LONGEST_REASON} are kept")

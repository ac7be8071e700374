"""Whether the grammar could have written a text: what a policy writes that it could not is no review of its world."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import get_args

from examples.reviews.grammar import Opening, Part, openings
from examples.reviews.lexicon import Domain, Language

FEWEST_JUDGEMENTS, MOST_JUDGEMENTS = 1, 3
"""Of a review after its first clause."""

Used = frozenset[int]
"""Aspects that the review has judged: none is judged twice."""


def could_have_written(prompt: str, completion: str) -> bool:
    """Return whether the grammar's writer can continue `prompt`, one of its openings, by exactly `completion`.

    All of it counts: words of the opening's own domain and language, no aspect twice, judgements that agree or differ
    as their conjunction says, capital letters after a full stop, and a full stop at the end. How likely the text is
    does not count.
    """
    opening = _openings().get(prompt)
    return opening is not None and _Reader(opening).accepts(completion)


def share_written(rows: Sequence[tuple[str, str]]) -> float:
    """Return the share of (prompt, completion) that the grammar could have written; 0 of no rows."""
    return sum(could_have_written(*row) for row in rows) / max(len(rows), 1)


@dataclass(frozen=True)
class _Reader:
    """Reads completions of an opening, as the writer would write them."""

    opening: Opening

    @property
    def language(self) -> Language:
        return self.opening.language

    @property
    def domain(self) -> Domain:
        return self.opening.domain

    def accepts(self, completion: str) -> bool:
        text = completion.removeprefix(self.language.space)
        if text == completion and self.language.space:
            return False
        # The writer's stop carries the space before the next sentence, which the last one has not.
        text += self.language.stop[len(self.language.stop.rstrip()) :]
        return any(
            self._rest(text, end, sentence_ends, used, 0)
            for first_end, used in self._first_clause(text)
            for end, sentence_ends in self._mark(text, first_end)
        )

    def _rest(self, text: str, start: int, capital: bool, used: Used, judgements: int) -> bool:
        """Tell whether facts, judgements and a closer can make up the text from `start` on."""
        if start == len(text):
            return capital and judgements >= FEWEST_JUDGEMENTS
        if judgements < MOST_JUDGEMENTS:
            # A fact stands only before a judgement.
            befores = [(start, capital)]
            for fact_end in self._word(text, start, capital, self.domain.facts):
                befores += self._mark(text, fact_end)
            for before, upper in befores:
                for end, now_used in self._judgement(text, before, upper, used):
                    for after, sentence_ends in self._mark(text, end):
                        if self._rest(text, after, sentence_ends, now_used, judgements + 1):
                            return True
        if judgements < FEWEST_JUDGEMENTS:
            return False
        closers = (end for good in (True, False) for end in self._word(text, start, capital, self._closers(good)))
        return any(end + len(self.language.stop) == len(text) and text.endswith(self.language.stop) for end in closers)

    def _first_clause(self, text: str) -> Iterator[tuple[int, Used]]:
        for good in (True, False):
            if self.opening.takes_adjective:
                yield from ((end, frozenset()) for end in self._word(text, 0, False, self._adjectives(good)))
            else:
                yield from self._aspect(text, 0, False, frozenset(), good)

    def _judgement(self, text: str, start: int, capital: bool, used: Used) -> Iterator[tuple[int, Used]]:
        """Read one clause, or two that a conjunction joins."""
        language = self.language
        for good in (True, False):
            for end, upper in self._link(text, start, capital, language.links):
                yield from self._clause(text, end, upper, used, good)
            for conjunctions, second_good in ((language.contrasts, not good), (language.additions, good)):
                for middle, now_used, between in self._first_half(text, start, capital, used, good, conjunctions):
                    for end, upper in self._link(text, middle, False, (between,)):
                        yield from self._clause(text, end, upper, now_used, second_good)
            for middle, now_used, between in self._first_half(text, start, capital, used, good, language.causes):
                for after, upper in self._link(text, middle, False, (between,)):
                    yield from ((end, now_used) for end in self._word(text, after, upper, self._closers(good)))

    def _first_half(
        self,
        text: str,
        start: int,
        capital: bool,
        used: Used,
        good: bool,
        conjunctions: Sequence[tuple[str, str]],
    ) -> Iterator[tuple[int, Used, str]]:
        """Read what a conjunction joins first, with its comma; and the conjunction's second word."""
        for first, between in conjunctions:
            for before, upper in self._link(text, start, capital, (first,)):
                for end, now_used in self._clause(text, before, upper, used, good):
                    if text.startswith(self.language.comma, end):
                        yield end + len(self.language.comma), now_used, between

    def _clause(self, text: str, start: int, capital: bool, used: Used, good: bool) -> Iterator[tuple[int, Used]]:
        yield from self._aspect(text, start, capital, used, good)
        for whole in self._word(text, start, capital, self.language.wholes):
            for adverbs, adjectives in (
                (self.language.degrees, self._adjectives(good)),
                (self.language.negations, self._adjectives(not good)),
            ):
                for middle in self._spaced(text, whole, adverbs):
                    yield from ((end, used) for end in self._spaced(text, middle, adjectives))

    def _aspect(self, text: str, start: int, capital: bool, used: Used, good: bool) -> Iterator[tuple[int, Used]]:
        for number, aspect in enumerate(self.domain.aspects):
            if number in used:
                continue
            for middle in self._word(text, start, capital, aspect.names):
                for end in self._spaced(text, middle, aspect.good if good else aspect.bad):
                    yield end, used | {number}

    def _adjectives(self, good: bool) -> tuple[str, ...]:
        return self.domain.good if good else self.domain.bad

    def _closers(self, good: bool) -> tuple[str, ...]:
        if good:
            return (*self.domain.good_closers, *self.language.good_summaries)
        return (*self.domain.bad_closers, *self.language.bad_summaries)

    def _link(self, text: str, start: int, capital: bool, words: Sequence[str]) -> Iterator[tuple[int, bool]]:
        """Yield ends of a word and the space after it, and whether the next takes the capital; an empty one is none."""
        for word in words:
            if not word:
                yield start, capital
            else:
                yield from ((end, False) for end in self._word(text, start, capital, (word + self.language.space,)))

    def _mark(self, text: str, start: int) -> list[tuple[int, bool]]:
        """Find the end of a comma or a full stop, and tell whether a sentence ends there."""
        marks = ((self.language.comma, False), (self.language.stop, True))
        return [(start + len(mark), ends) for mark, ends in marks if text.startswith(mark, start)]

    def _spaced(self, text: str, start: int, words: Sequence[str]) -> Iterator[int]:
        if text.startswith(self.language.space, start):
            yield from self._word(text, start + len(self.language.space), False, words)

    @staticmethod
    def _word(text: str, start: int, capital: bool, words: Sequence[str]) -> Iterator[int]:
        for word in dict.fromkeys(words):
            if text.startswith(word[0].upper() + word[1:] if capital else word, start):
                yield start + len(word)


@cache
def _openings() -> dict[str, Opening]:
    """List all openings by their text."""
    return {opening.text: opening for part in get_args(Part) for opening in openings(part)}

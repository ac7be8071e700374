"""A small grammar that writes product reviews in Chinese and English whose sentiment is known.

Texts, pairs, rank lists and prompts come from a seed alone; `examples.reviews.oracle.oracle` judges any text by the
grammar's own words. Prompts are divided once into a training and a held-out part; what the other functions write starts
with training prompts only.
"""

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from examples.reviews.chinese import CHINESE
from examples.reviews.english import ENGLISH
from examples.reviews.lexicon import Domain, Language
from examples.reviews.oracle import oracle

Part = Literal["train", "held_out"]

LANGUAGES = {language.code: language for language in (CHINESE, ENGLISH)}
DOMAINS = tuple(domain.name for domain in ENGLISH.domains)
"""What reviews may be of; the same in each language."""
HELD_OUT_SHARE = 0.2
PAIR_GAP = 0.25
"""Least difference of the oracle's scores in a pair."""
RANK_GAP = 0.04
"""Least difference between neighbours of a rank list; nine texts need eight gaps within 0..1."""


@dataclass(frozen=True)
class Opening:
    """A prompt, and what continues it."""

    text: str
    language: Language
    domain: Domain
    takes_adjective: bool


@dataclass(frozen=True)
class Review:
    """A prompt and the text that follows it."""

    prompt: str
    completion: str
    level: float
    """Share of positive judgements that the writer aimed at."""

    @property
    def text(self) -> str:
        """Prompt and completion."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class RankList:
    """Completions of one prompt, best first by the oracle's judgement of the whole text."""

    prompt: str
    completions: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """Prompt and completion of each."""
        return tuple(self.prompt + completion for completion in self.completions)


def openings(
    part: Part, languages: Sequence[str] = ("zh", "en"), domains: Sequence[str] = DOMAINS
) -> Sequence[Opening]:
    """Return what all prompts of one part are, in a fixed order."""
    return _openings(part, tuple(languages), tuple(domains))


def prompts(part: Part, languages: Sequence[str] = ("zh", "en"), domains: Sequence[str] = DOMAINS) -> list[str]:
    """Return all prompts of one part, in a fixed order."""
    return [opening.text for opening in openings(part, languages, domains)]


def texts(n: int, seed: int, languages: Sequence[str] = ("zh", "en"), domains: Sequence[str] = DOMAINS) -> list[Review]:
    """Write n reviews whose sentiment is spread evenly from negative to positive."""
    rng = random.Random(f"texts {seed}")
    starts = openings("train", languages, domains)
    return [_write(rng.choice(starts), rng.random(), rng) for _ in range(n)]


def pairs(
    n: int, seed: int, languages: Sequence[str] = ("zh", "en"), domains: Sequence[str] = DOMAINS
) -> list[RankList]:
    """Write n prompts, each with a better and a worse completion."""
    rng = random.Random(f"pairs {seed}")
    starts = openings("train", languages, domains)
    return [_ranked(rng.choice(starts), 2, PAIR_GAP, rng) for _ in range(n)]


def rank_lists(
    n: int,
    seed: int,
    languages: Sequence[str] = ("zh", "en"),
    size: int | None = None,
    domains: Sequence[str] = DOMAINS,
) -> list[RankList]:
    """Write n rank lists of `size` completions, 2 to 9 at random unless given."""
    rng = random.Random(f"rank lists {seed}")
    starts = openings("train", languages, domains)
    return [_ranked(rng.choice(starts), size or rng.randint(2, 9), RANK_GAP, rng) for _ in range(n)]


@cache
def _openings(part: Part, languages: tuple[str, ...], domains: tuple[str, ...]) -> tuple[Opening, ...]:
    found: dict[str, Opening] = {}
    for language in (LANGUAGES[code] for code in languages):
        for domain in (one for one in language.domains if one.name in domains):
            for adjective, templates in ((True, domain.adjective_openers), (False, domain.clause_openers)):
                for template in templates:
                    for noun in domain.nouns:
                        text = template.format(n=noun)
                        found.setdefault(text, Opening(text, language, domain, adjective))
    return tuple(opening for opening in found.values() if (part == "held_out") == _is_held_out(opening.text))


def _is_held_out(prompt: str) -> bool:
    return zlib.crc32(prompt.encode()) % 1000 < 1000 * HELD_OUT_SHARE


def _ranked(opening: Opening, size: int, gap: float, rng: random.Random) -> RankList:
    """Write until `size` completions lie at least `gap` apart."""
    scored: dict[str, float] = {}
    while True:
        for _ in range(2 * size):
            completion = _write(opening, rng.random(), rng).completion
            scored.setdefault(completion, oracle(opening.text + completion))
        apart: list[str] = []
        for completion in sorted(scored, key=lambda c: -scored[c]):
            if not apart or scored[apart[-1]] - scored[completion] >= gap:
                apart.append(completion)
        if len(apart) >= size:
            chosen = sorted(rng.sample(range(len(apart)), size))
            return RankList(opening.text, tuple(apart[index] for index in chosen))


def _write(opening: Opening, level: float, rng: random.Random) -> Review:
    return Review(opening.text, _Writer(opening, level, rng).completion(), level)


class _Writer:
    """Writes one completion, clause by clause."""

    def __init__(self, opening: Opening, level: float, rng: random.Random) -> None:
        self.language = opening.language
        self.domain = opening.domain
        self.takes_adjective = opening.takes_adjective
        self.level = level
        self.rng = rng
        self.aspects = rng.sample(opening.domain.aspects, len(opening.domain.aspects))

    def completion(self) -> str:
        rng = self.rng
        good = self._sign()
        sentences = [[self._adjective(good) if self.takes_adjective else self._aspect(good)]]
        for _ in range(rng.randint(1, 3)):
            if rng.random() < 0.2:
                sentences.append([rng.choice(self.domain.facts)])
            sentences.append(self._judgements())
        if rng.random() < 0.7:
            sentences.append([self._closer(self._sign())])
        return self._punctuate(sentences)

    def _sign(self) -> bool:
        return self.rng.random() < self.level

    def _judgements(self) -> list[str]:
        """Write one clause, or two that a conjunction joins."""
        rng, language = self.rng, self.language
        first, second, kind = self._sign(), self._sign(), rng.random()
        if first != second and kind < 0.7:
            return self._joined(language.contrasts, self._clause(first), self._clause(second))
        if first == second and kind < 0.25:
            return self._joined(language.additions, self._clause(first), self._clause(second))
        if kind < 0.35:
            return self._joined(language.causes, self._clause(first), self._closer(first))
        return [self._after(rng.choice(language.links), self._clause(first))]

    def _joined(self, conjunctions: Sequence[tuple[str, str]], first: str, second: str) -> list[str]:
        before, between = self.rng.choice(conjunctions)
        return [self._after(before, first), self._after(between, second)]

    def _after(self, link: str, clause: str) -> str:
        return f"{link}{self.language.space}{clause}" if link else clause

    def _clause(self, good: bool) -> str:
        kind = self.rng.random()
        if kind < 0.7 and self.aspects:
            return self._aspect(good)
        whole = self.rng.choice(self.language.wholes)
        if kind < 0.9:
            words = [whole, self.rng.choice(self.language.degrees), self._adjective(good)]
        else:
            words = [whole, self.rng.choice(self.language.negations), self._adjective(not good)]
        return self.language.space.join(words)

    def _aspect(self, good: bool) -> str:
        aspect = self.aspects.pop()
        predicate = self.rng.choice(aspect.good if good else aspect.bad)
        return f"{self.rng.choice(aspect.names)}{self.language.space}{predicate}"

    def _adjective(self, good: bool) -> str:
        return self.rng.choice(self.domain.good if good else self.domain.bad)

    def _closer(self, good: bool) -> str:
        language, domain = self.language, self.domain
        own, general = (
            (domain.good_closers, language.good_summaries) if good else (domain.bad_closers, language.bad_summaries)
        )
        return self.rng.choice(own if self.rng.random() < 0.5 else general)

    def _punctuate(self, sentences: list[list[str]]) -> str:
        """Join clauses by commas; a full stop never parts what a conjunction joins."""
        language, text, starts = self.language, "", False
        for index, clauses in enumerate(sentences):
            joined = language.comma.join(clauses)
            ends = index == len(sentences) - 1 or self.rng.random() < 0.4
            text += (joined[0].upper() + joined[1:] if starts else joined) + (language.stop if ends else language.comma)
            starts = ends
        return language.space + text.rstrip()

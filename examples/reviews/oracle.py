"""The grammar's own judgement of a text: how positive are the phrases in it that it knows?"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

from examples.reviews.chinese import CHINESE
from examples.reviews.english import ENGLISH
from examples.reviews.lexicon import Language

Kind = Literal["good", "bad", "negation", "degree", "concession", "contrast", "other"]

UNKNOWN = 0.2
"""Score of a text in which nothing is known; the part that is known counts by its share of the letters."""
PRIOR = 0.25
"""Judgements of each sign that every text starts with, so that one phrase alone is not certainty."""
CONCESSION_WEIGHT = 0.5
"""Weight of what follows `although`."""
CONTRAST_WEIGHT = 1.5
"""Weight of what follows `but`."""
FURTHER_NEGATIONS = (
    *("不", "不是", "不太", "不够", "不怎么", "没", "没有", "没那么", "毫不", "绝不"),
    *("no", "isn't", "wasn't", "aren't", "didn't", "doesn't", "nothing but"),
)
"""Negations that the grammar does not write itself."""


def oracle(text: str) -> float:
    """Return how positive a text is, from 0 to 1, by the phrases that the grammar knows.

    Judgements are counted with a weight: a negation directly before one turns it round, what is conceded counts half,
    what is set against it counts more. The share of good ones is then drawn towards `UNKNOWN` by the share of letters
    that belong to no known phrase, so that gibberish does not pass for a neutral review. Repetition is not judged.
    """
    text = text.lower()
    good = bad = PRIOR
    known = position = 0
    negated_at, weight = -1, 1.0
    letters = sum(character.isalnum() for character in text)
    while position < len(text):
        phrase = _longest_phrase(text, position)
        if phrase is None:
            if text[position] in "。.!！?？":
                weight = 1.0
            # Space between a negation and its judgement does not part them.
            if text[position] == " " and negated_at == position:
                negated_at += 1
            position += 1
            continue
        known += phrase.letters
        end = position + len(phrase.text)
        if phrase.kind in ("good", "bad"):
            if (phrase.kind == "good") != (negated_at == position):
                good += weight
            else:
                bad += weight
            weight = 1.0
        elif phrase.kind == "negation" or (phrase.kind == "degree" and negated_at == position):
            negated_at = end
        elif phrase.kind == "concession":
            weight = CONCESSION_WEIGHT
        elif phrase.kind == "contrast":
            weight = CONTRAST_WEIGHT
        position = end
    if not letters:
        return UNKNOWN
    share = min(1.0, known / letters)
    return share * good / (good + bad) + (1 - share) * UNKNOWN


@dataclass(frozen=True)
class _Phrase:
    text: str
    kind: Kind
    letters: int


def _longest_phrase(text: str, position: int) -> _Phrase | None:
    within_word = position > 0 and _is_latin(text[position]) and _is_latin(text[position - 1])
    if within_word:
        return None
    for phrase in _phrases().get(text[position], ()):
        if text.startswith(phrase.text, position):
            end = position + len(phrase.text)
            cuts_word = end < len(text) and _is_latin(text[end]) and _is_latin(text[end - 1])
            if not cuts_word:
                return phrase
    return None


def _is_latin(character: str) -> bool:
    return character.isascii() and (character.isalnum() or character == "'")


@cache
def _phrases() -> dict[str, list[_Phrase]]:
    """List every phrase of the grammar by its first character, longest first."""
    kinds: dict[str, Kind] = {}
    for language in (CHINESE, ENGLISH):
        for text, kind in _language_phrases(language):
            text = text.lower().strip(" ，,:。")
            if text:
                kinds.setdefault(text, kind)
    found: dict[str, list[_Phrase]] = {}
    for text in sorted(kinds, key=lambda t: -len(t)):
        found.setdefault(text[0], []).append(_Phrase(text, kinds[text], sum(c.isalnum() for c in text)))
    return found


def _language_phrases(language: Language) -> list[tuple[str, Kind]]:
    """List all phrases with their kind; where a phrase has two, the first counts."""
    rows: list[tuple[Kind, tuple[str, ...]]] = [("good", language.good_summaries), ("bad", language.bad_summaries)]
    for domain in language.domains:
        rows += [("good", domain.good), ("bad", domain.bad)]
        rows += [("good", domain.good_closers), ("bad", domain.bad_closers)]
        for aspect in domain.aspects:
            rows += [("good", aspect.good), ("bad", aspect.bad)]
    rows += [("negation", language.negations), ("negation", FURTHER_NEGATIONS), ("degree", language.degrees)]
    rows += [("concession", tuple(first for first, _ in language.contrasts))]
    rows += [("contrast", tuple(second for _, second in language.contrasts))]
    rows += [("other", tuple(word for pair in (*language.additions, *language.causes) for word in pair))]
    rows += [("other", language.links), ("other", language.wholes)]
    for domain in language.domains:
        openers = (*domain.adjective_openers, *domain.clause_openers)
        rows += [("other", tuple(piece for opener in openers for piece in opener.split("{n}")))]
        rows += [("other", domain.nouns), ("other", domain.facts)]
        rows += [("other", aspect.names) for aspect in domain.aspects]
    return [(text, kind) for kind, phrases in rows for text in phrases]

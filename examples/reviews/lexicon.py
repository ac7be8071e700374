"""The shape of a word table: what reviews of one kind of thing, in one language, are made of."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Aspect:
    """Something that a review judges, and the predicates that judge it."""

    names: tuple[str, ...]
    good: tuple[str, ...]
    bad: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """Words for one kind of thing (films, hotels, ...)."""

    name: str
    nouns: tuple[str, ...]
    adjective_openers: tuple[str, ...]
    """Prompts that an adjective continues; `{n}` is a noun."""
    clause_openers: tuple[str, ...]
    """Prompts that a clause about an aspect continues."""
    good: tuple[str, ...]
    """Adjectives."""
    bad: tuple[str, ...]
    aspects: tuple[Aspect, ...]
    good_closers: tuple[str, ...]
    bad_closers: tuple[str, ...]
    facts: tuple[str, ...]
    """Clauses without a judgement."""


@dataclass(frozen=True)
class Language:
    """Words of a language, and how clauses join into a review."""

    code: str
    domains: tuple[Domain, ...]
    wholes: tuple[str, ...]
    """Subjects that stand for the thing as a whole, before an adjective."""
    degrees: tuple[str, ...]
    """Adverbs before an adjective."""
    good_summaries: tuple[str, ...]
    """Judgements of the whole that fit every domain."""
    bad_summaries: tuple[str, ...]
    contrasts: tuple[tuple[str, str], ...]
    """`although A, but B`: the text before A and the text before B."""
    additions: tuple[tuple[str, str], ...]
    """`not only A, but also B`: both judge alike."""
    causes: tuple[tuple[str, str], ...]
    """`because A, so B`: B judges like A."""
    links: tuple[str, ...]
    """What may stand before a further clause."""
    negations: tuple[str, ...]
    """What turns a judgement round when it stands directly before it."""
    comma: str
    stop: str
    space: str


def split(text: str, separator: str = " ") -> tuple[str, ...]:
    """Cut a table's line into phrases."""
    return tuple(phrase for piece in text.split(separator) if (phrase := piece.strip()))

"""Rules that a text must keep: length, punctuation, letters, repetition, encoding, phrases, language.

Each looks at many texts at once and says which of them break it.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from rlhf_ray.config.jobs.cleaning import (
    DataJobConfig,
    LanguageConfig,
    LengthConfig,
    PunctuationConfig,
    QualityConfig,
    TextChoice,
)
from rlhf_ray.data.cleaning.characters import LETTERS, Characters
from rlhf_ray.data.cleaning.language import languages_of
from rlhf_ray.data.cleaning.ngrams import ngrams_of, repeated_share
from rlhf_ray.data.cleaning.texts import Texts, normal

REPETITION_LENGTH = 5
"""Characters of the pieces whose repetition is measured."""
REPETITION_FROM = 50
"""Characters from which on repetition says something."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that texts break."""

    rule: str
    """Name in the manifest."""
    texts: Bool[np.ndarray, " texts"]
    detail: Callable[[int], str]
    """What is wrong with a text of that number; it quotes nothing of it."""


@dataclass(frozen=True)
class Pack:
    """Texts with their characters."""

    texts: Sequence[str]
    characters: Characters

    @property
    def visible(self) -> np.ndarray:
        """Characters of each text that are no space; at least 1, to divide by."""
        return np.maximum(self.characters.lengths - self.characters.count("space"), 1)


def length_rules(config: LengthConfig, pack: Pack) -> Iterator[Broken]:
    """Find texts that are too short or too long."""
    lengths = np.array([len(text.strip()) for text in pack.texts])

    def detail(text: int) -> str:
        return f"{lengths[text]} characters"

    yield Broken("length.min_characters", lengths < config.min_characters, detail)
    yield Broken("length.max_characters", lengths > config.max_characters, detail)


def punctuation_rules(config: PunctuationConfig, pack: Pack) -> Iterator[Broken]:
    """Find texts of nothing but punctuation, with one mark many times, or long ones without any."""
    marks = pack.characters.count("punctuation", "symbol")
    shares = marks / pack.visible
    yield Broken("punctuation.max_share", shares > config.max_share, lambda text: f"share {shares[text]:.2f}")
    runs = pack.characters.longest_run("punctuation", "symbol")
    yield Broken("punctuation.max_run", runs > config.max_run, lambda text: f"{runs[text]} in a row")
    lengths = pack.characters.lengths
    bare = (lengths >= config.required_from) & (pack.characters.count("punctuation") == 0)
    yield Broken("punctuation.required_from", bare, lambda text: f"none in {lengths[text]} characters")


def quality_rules(config: QualityConfig, pack: Pack) -> Iterator[Broken]:
    """Find broken encoding, few letters, repetition, and phrases that nobody wants."""
    broken = pack.characters.count("broken") / np.maximum(pack.characters.lengths, 1)
    yield Broken("quality.max_broken", broken > config.max_broken, lambda text: f"share {broken[text]:.3f}")
    letters = pack.characters.count(*LETTERS) / pack.visible
    yield Broken("quality.min_letters", letters < config.min_letters, lambda text: f"share {letters[text]:.2f}")
    repeated = repeated_share(ngrams_of(pack.characters, REPETITION_LENGTH))
    too_often = (repeated > config.max_repetition) & (pack.characters.lengths >= REPETITION_FROM)
    yield Broken("quality.max_repetition", too_often, lambda text: f"share {repeated[text]:.2f}")
    if config.phrases:
        phrases = [normal(phrase) for phrase in config.phrases]
        found = [
            next((number for number, phrase in enumerate(phrases) if phrase in folded), -1)
            for folded in map(normal, pack.texts)
        ]
        yield Broken("quality.phrases", np.array(found) >= 0, lambda text: f"phrase {found[text]}")


def language_rules(config: LanguageConfig, pack: Pack) -> Iterator[Broken]:
    """Find another language, or too much of one in the text."""
    found = languages_of(pack.texts, pack.characters)
    other = np.array([language not in config.keep for language, _ in found])
    yield Broken("language.keep", other, lambda text: found[text][0])
    mixed = np.array([share < config.min_share for _, share in found])
    yield Broken("language.min_share", mixed, lambda text: f"{found[text][0]} {found[text][1]:.2f}")


class Rules:
    """The rules that a config asks for."""

    def __init__(self, config: DataJobConfig) -> None:
        self._rules: list[tuple[TextChoice, Callable[[Pack], Iterator[Broken]]]] = []
        if (length := config.length) is not None:
            self._rules.append((length.of, lambda pack: length_rules(length, pack)))
        if (punctuation := config.punctuation) is not None:
            self._rules.append((punctuation.of, lambda pack: punctuation_rules(punctuation, pack)))
        if (quality := config.quality) is not None:
            self._rules.append((quality.of, lambda pack: quality_rules(quality, pack)))
        if (language := config.language) is not None:
            self._rules.append((language.of, lambda pack: language_rules(language, pack)))

    def judge(self, rows: Sequence[Texts]) -> list[tuple[str, str] | None]:
        """Find the first rule that each row breaks, with a detail, or None; one text that breaks it is enough."""
        packs: dict[TextChoice, tuple[Pack, np.ndarray]] = {}
        verdicts: list[tuple[str, str] | None] = [None] * len(rows)
        for which, rule in self._rules:
            if which not in packs:
                packs[which] = _pack(rows, which)
            pack, row_of = packs[which]
            if not pack.texts:
                continue
            for broken in rule(pack):
                for text in np.flatnonzero(broken.texts).tolist():
                    row = int(row_of[text])
                    if verdicts[row] is None:
                        verdicts[row] = (broken.rule, broken.detail(text))
        return verdicts


def _pack(rows: Sequence[Texts], which: TextChoice) -> tuple[Pack, np.ndarray]:
    judged = [texts.judged(which) for texts in rows]
    flat = [text for texts in judged for text in texts]
    return Pack(flat, Characters.of(flat)), np.repeat(np.arange(len(rows)), [len(texts) for texts in judged])

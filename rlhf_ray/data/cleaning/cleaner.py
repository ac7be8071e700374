"""What is done to rows one by one: privacy, rules, scores, classes, keys. It depends on nothing but the rows.

So any process may do it, and the result is the same.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlhf_ray.config.data import RowLayout
from rlhf_ray.config.jobs.cleaning import DataJobConfig
from rlhf_ray.data.bad_rows import BadRow, Place
from rlhf_ray.data.cleaning.classifier import TextClassifier
from rlhf_ray.data.cleaning.duplicates import Duplicate
from rlhf_ray.data.cleaning.near_texts import TextKeys, text_keys
from rlhf_ray.data.cleaning.privacy import MASKS, Masker, PrivateKind
from rlhf_ray.data.cleaning.prompt_classes import use_case
from rlhf_ray.data.cleaning.rules import Rules
from rlhf_ray.data.cleaning.selection import prompt_key
from rlhf_ray.data.cleaning.texts import Texts, map_strings, normal, texts_of
from rlhf_ray.data.file_formats import RawRow, Row
from rlhf_ray.data.layouts.reading import own_rows
from rlhf_ray.data.row_files import json_line, set_apart

CLASS_COLUMN = "class"
EXCERPT = 60
"""Characters of a removed row that the audit shows, with everything private masked."""


@dataclass(frozen=True, slots=True)
class Removed:
    """A row that was removed."""

    number: int
    """Of the row in its batch."""
    place: Place
    rule: str
    detail: str
    excerpt: str
    """Empty where the row was removed for what it holds."""

    def line(self, source: str) -> bytes:
        """Return its line of the audit."""
        told = {"source": source, "place": str(self.place), "rule": self.rule, "detail": self.detail}
        return json_line(told | ({"excerpt": self.excerpt} if self.excerpt else {}))


@dataclass(slots=True)
class Kept:
    """A row that keeps all rules."""

    number: int
    place: Place
    line: bytes
    """As JSON."""
    compared: str
    """What is compared for duplicates, in its normal form; empty if nothing is."""
    prompt: str
    """What near prompts are told by, in its normal form; empty if parts may share those."""
    prompt_key: int
    class_name: str
    """Empty if rows get no class."""


@dataclass
class Cleaned:
    """Outcome of a batch of rows: kept and removed."""

    rows: int = 0
    """Rows seen; a tree of the data set counts as many as it holds, or one."""
    empty: int = 0
    """Trees that hold no row."""
    bad: list[Removed] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    keys: TextKeys | None = None
    """Of the rows kept, where duplicates are looked for."""
    prompt_keys: TextKeys | None = None
    """Of their prompts, where parts must not share near ones."""
    masked: Counter[PrivateKind] = field(default_factory=Counter)
    """Private data that were masked, by kind."""
    masked_rows: int = 0


@dataclass(slots=True)
class _Candidate:
    number: int
    place: Place
    row: Row
    texts: Texts


class Cleaner:
    """The steps that a config asks for."""

    def __init__(
        self, config: DataJobConfig, quality: TextClassifier | None = None, classes: TextClassifier | None = None
    ) -> None:
        """Clean by a config; classifiers of quality (its first class is high) and of prompts come trained."""
        self._config = config
        self._quality = quality
        self._classes = classes
        self._rules = Rules(config)
        actions = {} if config.privacy is None else config.privacy.model_dump()
        self._masked = frozenset(kind for kind in MASKS if actions.get(kind) == "mask")
        self._refused = frozenset(kind for kind in MASKS if actions.get(kind) == "drop")

    def clean(self, raw: Sequence[RawRow], layout: RowLayout) -> Cleaned:
        """Clean a batch of rows as they were read."""
        done = Cleaned()
        candidates = self._candidates(raw, layout, done)
        candidates = self._judge(candidates, done)
        self._finish(candidates, done)
        return done

    def _candidates(self, raw: Sequence[RawRow], layout: RowLayout, done: Cleaned) -> list[_Candidate]:
        """Return rows in this project's columns, without private data."""
        candidates = []
        for place, read in raw:
            try:
                if isinstance(read, BadRow):
                    raise read
                rows = own_rows(read, layout)
            except BadRow as error:
                self._bad(done, place, error)
                continue
            if not rows:
                done.rows += 1
                done.empty += 1
            for row in rows:
                try:
                    candidate = self._private(row, place, done)
                except BadRow as error:
                    self._bad(done, place, error)
                else:
                    done.rows += 1
                    if candidate is not None:
                        candidates.append(candidate)
        return candidates

    def _private(self, row: Row, place: Place, done: Cleaned) -> _Candidate | None:
        """Mask a row, or remove it."""
        if self._masked or self._refused:
            masker = Masker(self._masked | self._refused)
            row = map_strings(row, masker)
            refused = [kind for kind in masker.found if kind in self._refused]
            if refused:
                done.removed.append(Removed(done.rows, place, f"privacy.{refused[0]}", "", ""))
                return None
            texts = texts_of(row)
            done.masked += masker.found
            done.masked_rows += bool(masker.found)
            return _Candidate(done.rows, place, row, texts)
        return _Candidate(done.rows, place, row, texts_of(row))

    def _bad(self, done: Cleaned, place: Place, error: BadRow) -> None:
        done.bad.append(Removed(done.rows, place, "bad_row", Masker()(str(error)), ""))
        done.rows += 1

    def _judge(self, candidates: list[_Candidate], done: Cleaned) -> list[_Candidate]:
        """Return those that keep the rules and score high."""
        verdicts = self._rules.judge([candidate.texts for candidate in candidates])
        left = []
        for candidate, verdict in zip(candidates, verdicts, strict=True):
            if verdict is None:
                left.append(candidate)
            else:
                done.removed.append(_removed(candidate, *verdict))
        if self._quality is None or self._config.classifier is None or not left:
            return left
        config = self._config.classifier
        judged = [candidate.texts.judged(config.of) for candidate in left]
        scores = self._quality.probabilities([text for texts in judged for text in texts])[:, 0]
        begins = np.cumsum([0, *map(len, judged)])
        good = []
        for place, candidate in enumerate(left):
            score = scores[begins[place] : begins[place + 1]].min(initial=1.0)
            if score >= config.min_score:
                good.append(candidate)
            else:
                done.removed.append(_removed(candidate, "classifier.min_score", f"score {score:.3f}"))
        return good

    def _finish(self, candidates: list[_Candidate], done: Cleaned) -> None:
        """Add class, keys and JSON to the rows that stay."""
        names = self._class_names(candidates)
        duplicates, near_prompts = self._config.duplicates, self._config.near_prompts_to_group
        for candidate, name in zip(candidates, names, strict=True):
            whole = normal(candidate.texts.whole)
            prompt = normal(candidate.texts.prompt) if candidate.texts.prompt else ""
            repeated = "" if duplicates is None else prompt if duplicates.of == "prompt" and prompt else whole
            row = candidate.row
            if name:
                row = {**set_apart(row, [CLASS_COLUMN]), CLASS_COLUMN: name}
            key = prompt_key(prompt or whole)
            try:
                line = json_line(row)
            except (TypeError, ValueError) as error:
                done.bad.append(
                    Removed(candidate.number, candidate.place, "bad_row", f"JSON cannot hold it: {error}", "")
                )
                continue
            asked = "" if near_prompts is None else prompt or whole
            done.kept.append(Kept(candidate.number, candidate.place, line, repeated, asked, key, name))
        if duplicates is not None:
            done.keys = text_keys([kept.compared for kept in done.kept], duplicates.shingle, duplicates.near)
        if near_prompts is not None:
            done.prompt_keys = text_keys([kept.prompt for kept in done.kept], self._config.prompt_shingle, near_prompts)

    def _class_names(self, candidates: list[_Candidate]) -> list[str]:
        if self._config.classes is None:
            return [""] * len(candidates)
        prompts = [candidate.texts.prompt or candidate.texts.whole for candidate in candidates]
        if self._classes is None:
            return [use_case(prompt) for prompt in prompts]
        best = self._classes.probabilities(prompts).argmax(axis=1) if prompts else []
        return [self._classes.classes[place] for place in best]


def _removed(candidate: _Candidate, rule: str, detail: str) -> Removed:
    return Removed(candidate.number, candidate.place, rule, detail, _excerpt(candidate.texts))


def _excerpt(texts: Texts) -> str:
    """Return the beginning of a row's texts; masked before it is cut, so that no half of a number remains."""
    whole = Masker()(" ".join(texts.whole.split()))
    return whole if len(whole) <= EXCERPT else f"{whole[:EXCERPT]}..."


def repetition(kept: Kept, duplicate: Duplicate) -> Removed:
    """Make the record of a row that repeats an earlier one."""
    rule = "duplicates.exact" if duplicate.similarity == 1 else "duplicates.near"
    detail = f"of {duplicate.place}" + ("" if duplicate.similarity == 1 else f", similarity {duplicate.similarity:.3f}")
    return Removed(kept.number, kept.place, rule, detail, _excerpt(texts_of(json.loads(kept.line))))

"""The classifiers of `rlhf data`: loaded, or trained on examples with a fifth held out to measure them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rlhf_ray.config.data import RowSource
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.cleaning import DataJobConfig, TextChoice
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.cleaning.classifier import Purpose, TextClassifier, area_under_curve
from rlhf_ray.data.cleaning.texts import texts_of
from rlhf_ray.data.file_formats import Row
from rlhf_ray.data.loading import usable_rows

if TYPE_CHECKING:
    from rlhf_ray.jobs.data.account import Account

HELD_OUT = 5
"""Each fifth example measures and teaches nothing."""
FEWEST = 20
"""Examples of a class, below which neither learning nor measuring means anything."""


def quality_classifier(config: DataJobConfig, folder: Path, account: "Account") -> TextClassifier | None:
    """Make the classifier of quality (first class high); one trained here is kept as classifier.safetensors.

    Raises:
        BadInput: the examples are too few or cannot be read, or it does not tell them apart.
    """
    settings = config.classifier
    if settings is None:
        return None
    if settings.path is not None:
        return TextClassifier.load(settings.path, "quality")
    high, low = [
        _texts(source, settings.of, f"classifier.{name}")
        for name, source in (("high", settings.high), ("low", settings.low))
        if source is not None
    ]
    texts = high + low
    labels = np.repeat([0, 1], [len(high), len(low)])
    learn, held = _divide(labels, config.seed)
    names = ("high", "low")
    measured = TextClassifier.train([texts[place] for place in learn], labels[learn], names)
    scores = measured.probabilities([texts[place] for place in held])[:, 0]
    area = area_under_curve(scores[labels[held] == 0], scores[labels[held] == 1])
    if area < settings.min_auc:
        raise BadInput(
            f"classifier: AUC {area:.3f} on held-out examples is below min_auc {settings.min_auc:g}; "
            "give more examples, or ones that differ"
        )
    account.classifiers["quality"] = {"high": len(high), "low": len(low), "auc": round(area, 4)}
    return _keep(TextClassifier.train(texts, labels, names), folder / "classifier.safetensors", "quality")


def prompt_classifier(config: DataJobConfig, folder: Path, account: "Account") -> TextClassifier | None:
    """Make the classifier of prompts, None where rules decide; one trained here is kept as classes.safetensors.

    Raises:
        BadInput: the examples are too few or cannot be read, or it does not tell them apart.
    """
    settings = config.classes
    if settings is None or (settings.path is None and settings.examples is None):
        return None
    if settings.path is not None:
        return TextClassifier.load(settings.path, "classes")
    source = settings.examples
    texts, given = [], []
    for row in _rows(source, "classes.examples") if source else ():
        if not isinstance(row.get("class"), str) or not row["class"]:
            raise BadInput(
                f"classes.examples: {source and source.path}: each row needs `prompt` and `class`, both text"
            )
        texts.append(texts_of(row).judged("prompt")[0])
        given.append(row["class"])
    names = sorted(set(given))
    if len(names) < 2:
        raise BadInput(f"classes.examples: {source and source.path}: all rows are of one class, {', '.join(names)}")
    labels = np.array([names.index(name) for name in given])
    learn, held = _divide(labels, config.seed, names)
    measured = TextClassifier.train([texts[place] for place in learn], labels[learn], names)
    guessed = measured.probabilities([texts[place] for place in held]).argmax(axis=1)
    accuracy = float((guessed == labels[held]).mean())
    if accuracy < settings.min_accuracy:
        raise BadInput(
            f"classes: accuracy {accuracy:.3f} on held-out examples is below min_accuracy {settings.min_accuracy:g}; "
            "give more examples"
        )
    account.classifiers["classes"] = {"examples": len(texts), "accuracy": round(accuracy, 4)}
    return _keep(TextClassifier.train(texts, labels, names), folder / "classes.safetensors", "classes")


def _keep(classifier: TextClassifier, file: Path, purpose: Purpose) -> TextClassifier:
    file.write_bytes(classifier.to_bytes(purpose))
    return classifier


def _texts(source: RowSource, of: TextChoice, key: str) -> list[str]:
    return [text for row in _rows(source, key) for text in texts_of(row).judged(of)]


def _rows(source: RowSource, key: str) -> Iterator[Row]:
    """Read the usable rows of examples."""
    report = ReadReport(f"{key}: {source.path}", source.bad_rows)

    def checked(row: Row) -> Row:
        texts_of(row)
        return row

    return usable_rows(source, report, checked)


def _divide(
    labels: np.ndarray, seed: int, names: tuple[str, ...] | list[str] = ("high", "low")
) -> tuple[np.ndarray, ...]:
    """Return places to learn from and places held out, each with its part of every class."""
    for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
        if count < FEWEST:
            raise BadInput(f"class {name!r} has {count} examples; at least {FEWEST} are needed to learn and to measure")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(labels))
    by_class = order[np.argsort(labels[order], kind="stable")]
    return np.delete(by_class, np.s_[::HELD_OUT]), by_class[::HELD_OUT]

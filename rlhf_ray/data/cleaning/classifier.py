"""A small trainable classifier of texts: hashed n-grams of characters, softmax regression.

Characters serve Chinese and English alike, without a segmenter. Training takes AdaGrad (Duchi et al. 2011), which gives
rare n-grams larger steps.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64, Int64

from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.cleaning.characters import Characters
from rlhf_ray.data.cleaning.ngrams import ngrams_of
from rlhf_ray.data.cleaning.texts import normal

NGRAMS = (1, 2, 3, 4)
BUCKETS = 1 << 18
EPOCHS = 6
BATCH = 128
STEP = 0.2
SHRINK = 1e-5
"""Weight of the squared norm, which keeps n-grams that stand in one text from deciding."""
LONGEST = 4000
"""Characters of a text that are looked at, from its beginning."""
METADATA = "text_classifier"
Purpose = Literal["quality", "classes"]


@dataclass(frozen=True)
class Features:
    """Buckets of the n-grams of several texts, end to end; each counts 1 / sqrt(n-grams of its text)."""

    buckets: Int64[np.ndarray, " ngrams"]
    offsets: Int64[np.ndarray, " texts+1"]

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Features":
        """Features of texts, which may be empty."""
        characters = Characters.of([normal(text[:LONGEST]) or " " for text in texts])
        parts = [ngrams_of(characters, length) for length in NGRAMS]
        counts = np.stack([np.diff(part.offsets) for part in parts], axis=1)
        offsets = np.concatenate([[0], np.cumsum(counts.sum(axis=1))])
        begins = offsets[:-1, None] + np.cumsum(counts, axis=1) - counts
        buckets = np.empty(offsets[-1], np.int64)
        for order, part in enumerate(parts):
            places = np.repeat(begins[:, order] - part.offsets[:-1], counts[:, order]) + np.arange(len(part.hashes))
            buckets[places] = (part.hashes & np.uint64(BUCKETS - 1)).astype(np.int64)
        return cls(buckets, offsets)

    @property
    def scales(self) -> Float32[np.ndarray, " texts"]:
        """Return, for each text, what one of its n-grams counts."""
        return (1 / np.sqrt(np.diff(self.offsets))).astype(np.float32)

    def some(self, texts: Int64[np.ndarray, " chosen"]) -> "Features":
        """Features of some texts, in the given order."""
        pieces = [self.buckets[self.offsets[text] : self.offsets[text + 1]] for text in texts]
        offsets = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        return Features(np.concatenate(pieces), offsets)


class TextClassifier:
    """Probabilities of classes for texts."""

    def __init__(
        self,
        classes: Sequence[str],
        weights: Float32[np.ndarray, "buckets classes"],
        bias: Float32[np.ndarray, " classes"],
    ) -> None:
        self.classes = tuple(classes)
        self._weights = weights
        self._bias = bias

    @classmethod
    def train(
        cls, texts: Sequence[str], labels: Int64[np.ndarray, " texts"], classes: Sequence[str], seed: int
    ) -> "TextClassifier":
        """Learn from texts; rarer classes count more, so that all classes count the same.

        Args:
            texts: to learn from.
            labels: class of each, as a place in `classes`.
            classes: names.
            seed: orders the texts.
        """
        features = Features.of(texts)
        weights = np.zeros((BUCKETS, len(classes)), np.float32)
        squares = np.full((BUCKETS, len(classes)), 1e-8, np.float32)
        bias = np.zeros(len(classes), np.float32)
        balance = len(texts) / (len(classes) * np.maximum(np.bincount(labels, minlength=len(classes)), 1))
        model = cls(classes, weights, bias)
        generator = np.random.Generator(np.random.PCG64(seed))
        for _ in range(EPOCHS):
            order = generator.permutation(len(texts))
            for start in range(0, len(texts), BATCH):
                chosen = order[start : start + BATCH]
                batch = features.some(chosen)
                error = model._softmax(batch)
                error[np.arange(len(chosen)), labels[chosen]] -= 1
                error *= balance[labels[chosen]][:, None]
                model._step(batch, error.astype(np.float32), squares)
        return model

    def _step(self, batch: Features, error: Float32[np.ndarray, "texts classes"], squares: np.ndarray) -> None:
        counts = np.diff(batch.offsets)
        touched, inverse = np.unique(batch.buckets, return_inverse=True)
        for place in range(error.shape[1]):
            spread = np.repeat(error[:, place] * batch.scales, counts)
            slope = np.bincount(inverse, spread, len(touched)).astype(np.float32)
            slope += SHRINK * self._weights[touched, place]
            squares[touched, place] += slope * slope
            self._weights[touched, place] -= STEP * slope / np.sqrt(squares[touched, place])
        self._bias -= np.float32(STEP / BATCH) * error.sum(axis=0)

    def _softmax(self, features: Features) -> Float64[np.ndarray, "texts classes"]:
        sums = np.add.reduceat(self._weights[features.buckets], features.offsets[:-1], axis=0)
        logits = (sums * features.scales[:, None] + self._bias).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def probabilities(self, texts: Sequence[str]) -> Float64[np.ndarray, "texts classes"]:
        """Probability of each class for each text."""
        if not texts:
            return np.zeros((0, len(self.classes)))
        return self._softmax(Features.of(texts))

    def to_bytes(self, purpose: Purpose) -> bytes:
        """The content of a safetensors file."""
        from safetensors.numpy import save

        # One entry, because several come in any order, and equal runs are to write equal bytes.
        told = json.dumps({"purpose": purpose, "classes": self.classes}, ensure_ascii=False)
        return bytes(save({"weights": self._weights, "bias": self._bias}, {METADATA: told}))

    @classmethod
    def load(cls, path: str, purpose: Purpose) -> "TextClassifier":
        """Read a file that `to_bytes` made.

        Raises:
            BadInput: it is no such file, or one for another purpose.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                told = json.loads((file.metadata() or {}).get(METADATA, "{}"))
                if told.get("purpose") != purpose:
                    raise BadInput(f"{path}: is no classifier of {purpose}; an earlier run of `rlhf data` writes one")
                return cls(told["classes"], file.get_tensor("weights"), file.get_tensor("bias"))
        except (SafetensorError, OSError) as error:
            raise BadInput(f"{path}: cannot be read as safetensors: {error}") from error


def area_under_curve(positive: Float64[np.ndarray, " texts"], negative: Float64[np.ndarray, " texts"]) -> float:
    """Probability that a positive example scores higher than a negative one, ties half (Mann, Whitney 1947)."""
    scores = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[inverse[: len(positive)]].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))

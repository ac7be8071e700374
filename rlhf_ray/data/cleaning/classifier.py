"""A small trainable classifier of texts: hashed n-grams of characters, softmax regression.

Characters serve Chinese and English alike, without a segmenter. Training goes by L-BFGS (Liu and Nocedal 1989) over all
texts at once, so that their order has no say.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
PIECE = 4096
"""Texts whose n-grams are weighed at a time, which bounds memory."""
ITERATIONS = 16
"""Further ones changed no area under the curve that was measured by more than 0.002."""
GRADIENT = 1e-3
"""Largest slope at which learning ends before that."""
SHRINK = 1.0
"""Weight of half the squared norm, against the sum of losses: keeps n-grams that stand in one text from deciding."""
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
        """Extract the features of texts, which may be empty."""
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

    @property
    def weights(self) -> Float32[np.ndarray, " ngrams"]:
        """Return, for each n-gram, what one of it counts."""
        return np.repeat(self.scales, np.diff(self.offsets))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Take sums in one order, so that the same examples teach the same on any number of cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
        cls, texts: Sequence[str], labels: Int64[np.ndarray, " texts"], classes: Sequence[str]
    ) -> "TextClassifier":
        """Learn from texts; rarer classes count more, so that all classes count the same.

        Args:
            texts: to learn from.
            labels: class of each, as a place in `classes`.
            classes: names.
        """
        import torch
        from torch.nn.functional import cross_entropy, embedding_bag

        parts = [Features.of(texts[start : start + PIECE]) for start in range(0, len(texts), PIECE)]
        counts = np.bincount(labels, minlength=len(classes))
        balance = torch.from_numpy(len(texts) / (len(classes) * np.maximum(counts, 1))).float()
        weights = torch.zeros(BUCKETS, len(classes), requires_grad=True)
        bias = torch.zeros(len(classes), requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weights, bias], max_iter=ITERATIONS, tolerance_grad=GRADIENT, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            whole = SHRINK / 2 * weights.square().sum()
            whole.backward()
            for part, known in zip(parts, torch.from_numpy(labels).split(PIECE), strict=True):
                buckets, offsets, each = map(torch.from_numpy, (part.buckets, part.offsets, part.weights))
                logits = bias + embedding_bag(
                    buckets, weights, offsets, mode="sum", per_sample_weights=each, include_last_offset=True
                )
                error = cross_entropy(logits, known, balance, reduction="sum")
                error.backward()
                whole = whole.detach() + error.detach()
            return whole

        with _one_thread():
            optimizer.step(loss)
        return cls(classes, weights.detach().numpy(), bias.detach().numpy())

    def _softmax(self, features: Features) -> Float64[np.ndarray, "texts classes"]:
        sums = np.add.reduceat(self._weights[features.buckets], features.offsets[:-1], axis=0)
        logits = (sums * features.scales[:, None] + self._bias).astype(np.float64)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def probabilities(self, texts: Sequence[str]) -> Float64[np.ndarray, "texts classes"]:
        """Return the probability of each class for each text."""
        if not texts:
            return np.zeros((0, len(self.classes)))
        return self._softmax(Features.of(texts))

    def to_bytes(self, purpose: Purpose) -> bytes:
        """Return the content of a safetensors file."""
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
    """Return how likely a positive example scores above a negative one, ties half (Mann, Whitney 1947)."""
    scores = np.concatenate([positive, negative])
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[inverse[: len(positive)]].sum() - len(positive) * (len(positive) + 1) / 2
    return float(above / (len(positive) * len(negative)))

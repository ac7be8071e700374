"""After a transfer: do trainer and engine hold the same weights, and do they compute the same from them?

Weights are compared by their bits, exactly: see `fingerprint`. That does not tell whether the engine computes with
them, nor whether the trainer sent what it computes with; so both sides score some texts too. There equal weights give
log-probabilities that differ by rounding alone, whose size follows that of the logits.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, Int32

from rlhf_ray.config.model import Dtype
from rlhf_ray.models.logit_size import LogitSize
from rlhf_ray.transfer.errors import SyncMismatch
from rlhf_ray.transfer.fingerprint import by_layer, over_workers
from rlhf_ray.transfer.manifest import name_some

logger = logging.getLogger(__name__)

ROUNDING: dict[Dtype, float] = {"float32": 2.0**-24, "bfloat16": 2.0**-8}
"""Largest relative error of one rounding."""

MEAN_ROUNDINGS: dict[Dtype, float] = {"float32": 100.0, "bfloat16": 10.0}
"""Roundings of a usual logit that the mean difference may have. Measured in bfloat16 between vLLM and Transformers, 8
layers of random weights: 3.1 to 5.0 at logits up to 94. In float32 the many sums count for more than the rounding of
results."""

LARGEST_ROUNDINGS: dict[Dtype, float] = {"float32": 400.0, "bfloat16": 12.0}
"""Roundings of the largest logit that one difference may have; measured are 2.3 to 4.7 in bfloat16."""

SMALLEST_LOGIT = LogitSize(largest=4.0, usual=1.0)
"""Smaller logits are taken for that: what is rounded on the way to log-probabilities does not shrink with them."""

PROBE_ROWS, PROBE_TOKENS = 4, 64
"""Random texts: enough for every layer to matter at every position, cheap on any machine."""

NATURAL_TOKENS = 256
"""Tokens of natural text, all in all."""

PROBE_SEED = 20_160_901


def probe_sequences(
    vocab_size: int, natural: Sequence[Int32[np.ndarray, " tokens"]] = (), max_tokens: int | None = None
) -> list[Int32[np.ndarray, " tokens"]]:
    """Return token sequences to score: random ones, the same on every call, and natural ones.

    Args:
        vocab_size: rows of the embedding.
        natural: token ids of texts that the model knows, if any; the first NATURAL_TOKENS tokens are taken.
        max_tokens: cut all of them to this length; the engine needs room for one token more.
    """
    random = np.random.default_rng(PROBE_SEED).integers(0, vocab_size, (PROBE_ROWS, PROBE_TOKENS), dtype=np.int32)
    texts, left = list(random), NATURAL_TOKENS
    for ids in natural:
        texts.append(np.asarray(ids[:left], dtype=np.int32))
        left -= len(texts[-1])
    return [ids for ids in (text[:max_tokens] for text in texts) if len(ids) > 1]


@dataclass(frozen=True, slots=True)
class Probe:
    """The trainer's answer to the probe sequences, and the weights that it sent."""

    logprobs: list[Float32[np.ndarray, " tokens-1"]]
    """Of each token after the first, at temperature 1, sequence by sequence."""
    logits: LogitSize
    """Of the logits behind them."""
    sent: Mapping[str, int] = field(default_factory=dict)
    """Bit sum of each tensor of the last transfer, by name; nothing where none was sent."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Differences of log-probabilities, in nats, that rounding explains."""

    largest: float
    mean: float

    @classmethod
    def of(cls, dtype: Dtype, logits: LogitSize, largest: float | None = None) -> "Tolerance":
        """Return what is allowed at logits of a size.

        Args:
            dtype: type of the forward passes.
            logits: their size.
            largest: what one difference may be, where a user has said so; the mean may grow in proportion.
        """
        allowed = cls(
            LARGEST_ROUNDINGS[dtype] * ROUNDING[dtype] * max(logits.largest, SMALLEST_LOGIT.largest),
            MEAN_ROUNDINGS[dtype] * ROUNDING[dtype] * max(logits.usual, SMALLEST_LOGIT.usual),
        )
        if largest is None:
            return allowed
        return cls(largest, allowed.mean * largest / allowed.largest)


@dataclass(frozen=True, slots=True)
class Difference:
    """Absolute differences of log-probabilities between trainer and engine, in nats."""

    largest: float
    mean: float


def compare_scores(
    trainer: Sequence[Float32[np.ndarray, " tokens-1"]],
    engine: Sequence[Float32[np.ndarray, " tokens-1"]],
    tolerance: Tolerance,
    *,
    dtype: Dtype,
    version: int,
    engine_index: int = 0,
) -> Difference:
    """Return how far an engine's log-probabilities of the probe are from the trainer's.

    Args:
        trainer: log-probability of each token after the first, at temperature 1, sequence by sequence.
        engine: likewise, from `Engine.score`.
        tolerance: what is allowed.
        dtype: type of the forward passes, for the message.
        version: of the weights, for the message.
        engine_index: which engine, for the message.

    Raises:
        SyncMismatch: they differ by more, or one of them is not a number.
    """
    differences = np.abs(np.concatenate(trainer) - np.concatenate(engine))
    # A NaN must not pass as a small difference.
    finite = bool(np.isfinite(differences).all())
    found = Difference(*(float(f(differences)) if finite else float("inf") for f in (np.max, np.mean)))
    if found.largest <= tolerance.largest and found.mean <= tolerance.mean:
        return found
    raise SyncMismatch(
        f"weight sync of version {version}: rollout engine {engine_index} does not compute with the trainer's "
        f"weights: log-probabilities of the probe differ by {found.mean:.3g} in the mean and by up to "
        f"{found.largest:.3g}, allowed are {tolerance.mean:.3g} and {tolerance.largest:.3g} in {dtype} at logits of "
        "this size. Samples of this engine would be wrong. If the model is right and only its precision is low, "
        "raise rollout.sync_tolerance"
    )


@dataclass(frozen=True, slots=True)
class HeldWeights:
    """The weights that one engine holds after a transfer: each list has an entry for each of its workers."""

    received: list[dict[str, int]]
    """Bit sum of each tensor that came, by its name; nothing where the transport does not sum them."""
    stored: list[dict[str, int]]
    """Bit sum of each of the model's own parameters, by its name there."""
    stale: list[list[str]]
    """Layers that compute with something else than the weight that was loaded into them."""


class WeightComparison:
    """Compares the bits of weights that were sent with those that stand in the engines.

    An engine may hold some layers in another form: transformed, quantized, a key-value head on two workers. What is
    so is seen at the first comparison, when an engine that started from the trainer's own checkpoint must agree, and
    these layers are left to the comparison of what arrived and of log-probabilities.
    """

    def __init__(self, dtype: Dtype) -> None:
        self._dtype = getattr(torch, dtype)
        self._comparable: frozenset[str] | None = None
        self.share = 0.0
        """Of the layers that were compared by what stands in the engine."""

    def check(self, sent: Mapping[str, int], engines: Mapping[int, HeldWeights], version: int) -> None:
        """Compare all engines.

        Raises:
            SyncMismatch: an engine got other bits, or holds them no more, or computes with something else.
        """
        expected = by_layer(sent, self._dtype)
        held = {number: by_layer(over_workers(engine.stored), self._dtype) for number, engine in engines.items()}
        equal = {
            number: frozenset(k for k in expected if expected[k] == layers.get(k)) for number, layers in held.items()
        }
        if self._comparable is None:
            self._comparable = frozenset(expected).intersection(*equal.values())
            self._note(sorted(expected.keys() - self._comparable))
        for number, engine in engines.items():
            wrong = sorted({name for got in engine.received for name in got if got[name] != sent.get(name)})
            _refuse(wrong, "did not arrive as they were sent", number, version)
            _refuse(sorted(set().union(*engine.stale)), "are computed with other weights than came", number, version)
            _refuse(sorted(self._comparable - equal[number]), "hold other weights than came", number, version)
        self.share = len(self._comparable) / max(1, len(expected))

    def _note(self, others: list[str]) -> None:
        if others:
            logger.info(
                "weight sync: the engines hold %s in another form than the trainer; compared by log-probabilities",
                name_some(others),
            )


def _refuse(wrong: list[str], what: str, engine: int, version: int) -> None:
    if wrong:
        raise SyncMismatch(
            f"weight sync of version {version}: rollout engine {engine} does not hold the trainer's weights: "
            f"{name_some(wrong)} {what}. Samples of this engine would be wrong"
        )


def sync_timings(sent: dict[str, float], received: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the seconds of a transfer's parts: `gather` and `send` on the sender, `load` and `pause` of the slowest
    engine.

    They overlap: a bucket is gathered while the one before travels, and loaded while it arrives.

    Args:
        sent: what `WeightSender.send` returned on the sender.
        received: what `Engine.receive` returned, engine by engine.
    """
    slowest = max(received, key=lambda timings: timings["receive"])
    return {"gather": sent["gather"], "send": sent["send"], "load": slowest["load"], "pause": slowest["pause"]}

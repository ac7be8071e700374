"""After a transfer, trainer and engine score one fixed text: equal weights give equal log-probabilities.

Comparing stored weights is not enough: engines compute with packed copies of them, which can stay old.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from rlhf_ray.config.model import Dtype
from rlhf_ray.transfer.errors import SyncMismatch

TOLERANCE: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest difference of log-probabilities that rounding explains: about 100 times what was measured in float32, 10 in
bfloat16."""

PROBE_TOKENS = 64
"""Length of the random probe: enough for every layer to matter at every position, cheap on any machine."""

PROBE_SEED = 20_160_901


def probe_sequences(
    vocab_size: int, natural: Sequence[Int32[np.ndarray, " tokens"]] = (), max_tokens: int | None = None
) -> list[Int32[np.ndarray, " tokens"]]:
    """Return sequences to score: random ones over the vocabulary, equal on every call, and given natural ones.

    Args:
        vocab_size: rows of the embedding.
        natural: token ids of texts that the model knows, if any.
        max_tokens: cut all of them to this length; the engine needs room for one token more.
    """
    random = np.random.default_rng(PROBE_SEED).integers(0, vocab_size, PROBE_TOKENS, dtype=np.int32)
    longest = max_tokens if max_tokens is not None else max(map(len, (random, *natural)))
    probes = [np.asarray(ids[:longest], dtype=np.int32) for ids in (random, *natural)]
    return [ids for ids in probes if len(ids) > 1]


def verify_sync(
    trainer: Sequence[Float32[np.ndarray, " tokens-1"]],
    engine: Sequence[Float32[np.ndarray, " tokens-1"]],
    *,
    dtype: Dtype,
    tolerance: float | None = None,
    version: int,
    engine_index: int = 0,
) -> float:
    """Return the largest difference between the trainer's and an engine's log-probabilities of the probe.

    Args:
        trainer: log-probability of each token after the first, at temperature 1, sequence by sequence.
        engine: likewise, from `Engine.score`.
        dtype: type of the forward passes, which gives the tolerance unless that is given.
        tolerance: largest allowed difference.
        version: of the weights, for the message.
        engine_index: which engine, for the message.

    Raises:
        SyncMismatch: they differ by more, or one of them is not a number.
    """
    differences = np.abs(np.concatenate(trainer) - np.concatenate(engine))
    # A NaN must not pass as a small difference.
    largest = float(np.max(differences)) if np.isfinite(differences).all() else float("inf")
    allowed = TOLERANCE[dtype] if tolerance is None else tolerance
    if largest > allowed:
        raise SyncMismatch(
            f"weight sync of version {version}: rollout engine {engine_index} does not compute with the trainer's "
            f"weights: log-probabilities of the probe differ by up to {largest:.3g}, allowed are {allowed:.3g} in "
            f"{dtype}. Samples of this engine would be wrong. If the model is right and only its precision is low, "
            "raise rollout.sync_tolerance"
        )
    return largest


def sync_timings(sent: dict[str, float], received: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the seconds of `gather`, `wire`, `load`, `pause`; they add up to the slowest engine's time.

    Gathering shows on the engines as waiting for the wire, so it is taken from there.

    Args:
        sent: what `WeightSender.send` returned on the sender.
        received: what `Engine.receive` returned, engine by engine.
    """
    slowest = max(received, key=lambda timings: timings["receive"])
    wire = slowest["receive"] - slowest["load"] - slowest["pause"] - sent["gather"]
    return {"gather": sent["gather"], "wire": max(0.0, wire), "load": slowest["load"], "pause": slowest["pause"]}

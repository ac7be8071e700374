"""One rank of a trained or frozen role as a Ray actor."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from rlhf_ray.algorithms.losses import Loss
from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.config.model import Dtype
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.training.microbatch import ExtraBatch
from rlhf_ray.training.rank import Microbatches, TrainerRank
from rlhf_ray.transfer.group import TransferGroup, Transport
from rlhf_ray.transfer.manifest import Manifest
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource

Columns = Mapping[str, Shaped[np.ndarray, " values"]]


class TrainerActor:
    """One rank as a Ray actor: the methods of `TrainerRank`, and the sending end of weight transfer.

    The model is loaded at the first call, which is `start`; an error then reaches the driver with its type.
    """

    def __init__(self, **arguments: Any) -> None:
        """Args: those of `TrainerRank`."""
        self._arguments = arguments
        self._sender: WeightSender | None = None
        self._adapter_files: dict[str, bytes] = {}

    @cached_property
    def _rank(self) -> TrainerRank:
        return TrainerRank(**self._arguments)

    def start(self) -> None:
        """Load the model and meet the other ranks."""
        _ = self._rank

    def logprobs(
        self, microbatches: Microbatches, batch: TokenBatch, entropy: bool, adapter: bool
    ) -> dict[str, Float32[np.ndarray, " tokens"]]:
        """Log-probabilities of this rank's rows."""
        return self._rank.logprobs(batch, microbatches, entropy, adapter=adapter)

    def values(self, microbatches: Microbatches, batch: TokenBatch) -> Float32[np.ndarray, " tokens"]:
        """Values of this rank's rows."""
        return self._rank.values(batch, microbatches)

    def scores(self, microbatches: Microbatches, batch: TokenBatch) -> Float32[np.ndarray, " rows"]:
        """Scores of this rank's rows."""
        return self._rank.scores(batch, microbatches)

    def train_step(
        self, microbatches: Microbatches, batch: TokenBatch, loss: Loss, columns: Columns, row_columns: Columns
    ) -> dict[str, float]:
        """Take one optimizer step."""
        return self._rank.train_step(batch, microbatches, loss, columns, row_columns)

    def train_step_with_extra(
        self,
        microbatches: tuple[Microbatches, Microbatches],
        batch: TokenBatch,
        loss: Loss,
        columns: Columns,
        row_columns: Columns,
        extra: ExtraBatch,
    ) -> dict[str, float]:
        """Take one optimizer step on two batches; micro-batches of the first and of the one beside it."""
        return self._rank.train_step(batch, microbatches[0], loss, columns, row_columns, extra, microbatches[1])

    def save(self, directory: str) -> list[Part]:
        """Write this rank's part of the state."""
        return self._rank.save(directory)

    def load(self, directory: str) -> None:
        """Continue from a saved state."""
        self._rank.load(directory)

    def average_weights(self, decay: float) -> None:
        """Move the average of the weights."""
        self._rank.average_weights(decay)

    def export(self, directory: str, average: bool) -> None:
        """Write a Hugging Face directory."""
        self._rank.export(directory, average)

    def wake(self) -> None:
        """Bring weights and optimizer back onto the device."""
        self._rank.wake()

    def sleep(self) -> None:
        """Clear the device."""
        self._rank.sleep()

    def prepare_transfer(self, transport: Transport, dtype: Dtype, bucket_bytes: int, seconds: float) -> Manifest:
        """Make the sending end; returns what every transfer carries."""
        source = DeepSpeedWeightSource(self._rank.weight_source(), dtype, bucket_bytes)
        self._sender = WeightSender(source, transport, rank=self._rank.rank, seconds=seconds)
        return self._sender.manifest

    def open_transfer(self, generation: int, engine_workers: Sequence[int], host: str) -> TransferGroup:
        """On rank 0: make a new transfer group."""
        return self._prepared().open(generation, engine_workers, host)

    def join_transfer(self) -> None:
        """On rank 0: complete the rendezvous while the engines connect."""
        self._prepared().join()

    def probe_logprobs(self, sequences: Sequence[np.ndarray]) -> list[Float32[np.ndarray, " tokens-1"]]:
        """Log-probability of each token after the first, at temperature 1, as an engine's `score` gives them."""
        batch = TokenBatch.from_sequences([ids[:1] for ids in sequences], [ids[1:] for ids in sequences])
        rows = [np.array([row]) for row in range(batch.rows)]
        flat = self._rank.logprobs(batch, rows, temperature=1.0)["logprobs"]
        return np.split(flat, batch.response_offsets[1:-1])

    def send_weights(self) -> dict[str, float]:
        """Gather and send all weights while the engines receive; returns seconds by part."""
        return self._prepared().send()

    def gather_adapter(self) -> None:
        """Collect the policy's adapter on rank 0; all ranks together."""
        self._adapter_files = self._rank.adapter_files()

    def adapter_files(self) -> dict[str, bytes]:
        """On rank 0: the files of the adapter as it was gathered, by name."""
        return self._adapter_files

    def close_transfer(self) -> None:
        """Leave the transfer group."""
        if self._sender is not None:
            self._sender.close()

    def _prepared(self) -> WeightSender:
        if self._sender is None:
            raise RuntimeError("weight transfer: call prepare_transfer first")
        return self._sender

"""One rank of a trained or frozen role as a Ray actor."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Shaped

from rlhf_ray.config.model import Dtype
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.training.rank import TrainerRank
from rlhf_ray.transfer.group import TransferGroup, Transport
from rlhf_ray.transfer.manifest import Manifest
from rlhf_ray.transfer.sender import WeightSender
from rlhf_ray.transfer.source import DeepSpeedWeightSource

Columns = Mapping[str, Shaped[np.ndarray, " values"]]


class TrainerActor(TrainerRank):
    """One rank as a Ray actor, and the sending end of weight transfer.

    The model is loaded by the first call, which is `start`; an error then reaches the driver with its type.
    """

    def __init__(self, **arguments: Any) -> None:
        """Keep the arguments of `TrainerRank` until `start`."""
        self._arguments = arguments
        self._sender: WeightSender | None = None
        self._gathered: dict[str, bytes] = {}

    def start(self) -> None:
        """Load the model and meet the other ranks."""
        super().__init__(**self._arguments)

    def prepare_transfer(self, transport: Transport, dtype: Dtype, bucket_bytes: int, seconds: float) -> Manifest:
        """Make the sending end; returns what every transfer carries."""
        source = DeepSpeedWeightSource(self.weight_source(), dtype, bucket_bytes)
        self._sender = WeightSender(source, transport, rank=self.rank, seconds=seconds)
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
        flat = self.logprobs(batch, rows, temperature=1.0)["logprobs"]
        return np.split(flat, batch.response_offsets[1:-1])

    def send_weights(self) -> dict[str, float]:
        """Gather and send all weights while the engines receive; returns seconds by part."""
        return self._prepared().send()

    def gather_adapter(self) -> None:
        """Collect the policy's adapter on rank 0; all ranks together."""
        self._gathered = self.adapter_files()

    def gathered_adapter(self) -> dict[str, bytes]:
        """On rank 0, return the files of the adapter as it was gathered, by name."""
        return self._gathered

    def close_transfer(self) -> None:
        """Leave the transfer group."""
        if self._sender is not None:
            self._sender.close()

    def _prepared(self) -> WeightSender:
        if self._sender is None:
            raise RuntimeError("weight transfer: call prepare_transfer first")
        return self._sender

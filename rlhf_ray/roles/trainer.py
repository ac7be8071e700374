"""Trained roles (policy, critics, reward models) and the frozen reference: a rank's actor, and the driver's side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import ray
from jaxtyping import Float32, Int, Shaped

from rlhf_ray.algorithms.losses import Loss
from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.config.model import Dtype, ModelConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.batches import TokenBatch, assign, prompt_groups
from rlhf_ray.models.facts import weight_bytes
from rlhf_ray.models.ragged_attention import model_takes_ragged_rows
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.training.microbatch import ExtraBatch
from rlhf_ray.training.process import RankDeadlines, ThreadDemand
from rlhf_ray.training.rank import Kind, TrainerRank

if TYPE_CHECKING:
    from rlhf_ray.transfer.group import TransferGroup, Transport
    from rlhf_ray.transfer.manifest import Manifest
    from rlhf_ray.transfer.sender import WeightSender
    from rlhf_ray.transfer.verification import Probe

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

    def sleep(self) -> None:
        """Clear the device for others that share it: weights, gradients and optimizer wait in host memory."""
        self.memory.sleep()

    def wake(self) -> None:
        """Bring back onto the device what `sleep` took away."""
        self.memory.wake()

    def free_cache(self) -> None:
        """Give back device memory that is kept for the next computation."""
        self.memory.free_cache()

    def prepare_transfer(self, transport: "Transport", dtype: Dtype, bucket_bytes: int, seconds: float) -> "Manifest":
        """Make the sending end; returns what every transfer carries."""
        # Here, as only policies whose engines take their weights send any.
        from rlhf_ray.transfer.sender import WeightSender
        from rlhf_ray.transfer.source import DeepSpeedWeightSource

        source = DeepSpeedWeightSource(self.weight_source(), dtype, bucket_bytes)
        self._sender = WeightSender(source, transport, rank=self.rank, seconds=seconds)
        return self._sender.manifest

    def open_transfer(self, generation: int, engine_workers: Sequence[int], host: str) -> "TransferGroup":
        """Make a new transfer group, on rank 0."""
        return self._prepared().open(generation, engine_workers, host)

    def join_transfer(self) -> None:
        """Complete the rendezvous, on rank 0, while the engines connect."""
        self._prepared().join()

    def probe(self, sequences: Sequence[np.ndarray]) -> "Probe":
        """Score sequences as an engine's `score` does, all ranks together; with the bit sums of what was sent last."""
        from rlhf_ray.models.logit_size import measured_logits
        from rlhf_ray.transfer.verification import Probe

        batch = TokenBatch.from_sequences([ids[:1] for ids in sequences], [ids[1:] for ids in sequences])
        with measured_logits(self.network.get_output_embeddings()) as size:
            flat = self.logprobs(batch, [np.arange(batch.rows)], temperature=1.0)["logprobs"]
        sent = {} if self._sender is None else self._sender.sent
        return Probe(np.split(flat, batch.response_offsets[1:-1]), size, sent)

    def send_weights(self) -> dict[str, float]:
        """Gather and send all weights while the engines receive; returns seconds by part."""
        return self._prepared().send()

    def gather_adapter(self) -> None:
        """Collect the policy's adapter on rank 0; all ranks together."""
        self._gathered = self.adapter_files()

    def gathered_adapter(self) -> dict[str, bytes]:
        """Return, on rank 0, the files of the adapter as it was gathered, by name."""
        return self._gathered

    def close_transfer(self) -> None:
        """Leave the transfer group."""
        if self._sender is not None:
            self._sender.close()

    def _prepared(self) -> "WeightSender":
        if self._sender is None:
            raise RuntimeError("weight transfer: call prepare_transfer first")
        return self._sender


Result = TypeVar("Result")
LEAST_GROUPS_A_RANK = 8
"""Rows of one prompt lie together as long as each of several ranks gets so many groups of that size."""


@dataclass(frozen=True)
class SharedBatch:
    """A batch that was put into the object store once, for all roles that work on it."""

    batch: TokenBatch
    ref: ray.ObjectRef

    @classmethod
    def put(cls, batch: TokenBatch) -> "SharedBatch":
        """Put a batch; the caller owns it."""
        return cls(batch, ray.put(batch))


class Pending(Generic[Result]):
    """Remote work that was submitted to all ranks of a role."""

    def __init__(
        self, group: ActorGroup, phase: str, refs: Sequence[ray.ObjectRef], finish: Callable[[list[Any]], Result]
    ) -> None:
        self._group, self._phase, self._refs, self._finish = group, phase, refs, finish

    def result(self) -> Result:
        """Wait for all ranks.

        Raises:
            DeadlineExceeded, RoleDied, RoleRaised: see `cluster.outcome.wait`.
        """
        return self._finish(self._group.mesh.collect(self._group.wait(self._refs, phase=self._phase)))


class TrainerGroup:
    """All ranks of one trained (or frozen) model, called from the driver.

    Rows are divided among ranks and micro-batches here; results come back in the batch's order, whatever the division.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        kind: Kind,
        model: ModelConfig,
        trainer: TrainerConfig,
        *,
        tokens_per_microbatch: int,
        total_steps: int,
        seed: int,
        temperature: float = 1.0,
        trainable: bool = True,
        max_restarts: int = 0,
        demand: ThreadDemand | None = None,
        units: ScoreStatistics | None = None,
    ) -> None:
        """Start the ranks without waiting for them: call `ready`.

        Args:
            cluster: where to place them.
            name: the role's name in errors and plans.
            kind: policy, critic or reward; a reference is a policy that is not trainable.
            model: what to load.
            trainer: optimizer, sharding, placement.
            tokens_per_microbatch: tokens, padding counted, of one pass on one rank.
            total_steps: optimizer steps of the whole run.
            seed: of a new scalar head and of the ranks' random numbers.
            temperature: at which the policy samples.
            trainable: False for a frozen model.
            max_restarts: restarts of one rank within an hour.
            demand: who computes beside the ranks on their CPUs; None: nobody.
            units: of the rewards that a critic foretells, where it begins as the model that gives them.
        """
        self.name, self.kind = name, kind
        self._tokens_per_microbatch = tokens_per_microbatch
        self._takes_ragged_rows = model_takes_ragged_rows(model)
        self._by_length = self._takes_ragged_rows or trainer.zero_stage != 3
        self._cluster = cluster
        self._master = ("", 0)
        size = weight_bytes(model.path, model.trust_remote_code)

        def arguments(rank: int) -> dict[str, Any]:
            if rank == 0:
                # A new port at each start of the group: the old one may still be held.
                self._master = cluster.endpoint(name)
            return {
                "kind": kind,
                "model": model,
                "trainer": trainer,
                "total_steps": total_steps,
                "seed": seed,
                "rank": rank,
                "world": trainer.workers,
                "master": self._master,
                "temperature": temperature,
                "trainable": trainable,
                "deadlines": RankDeadlines(
                    cluster.deadlines.join_seconds,
                    cluster.deadlines.loading(size),
                    cluster.deadlines.collective_seconds,
                ),
                "demand": demand,
                "units": units,
            }

        self.actors = ActorGroup(
            cluster, TrainerActor, trainer, name, arguments, max_restarts, start="start", weight_bytes=size
        )

    def ready(self) -> None:
        """Wait until all ranks have loaded the model and met.

        Raises:
            DeadlineExceeded, RoleDied, RoleRaised: see `cluster.outcome.wait`.
        """
        self.actors.ready()

    def restart(self, failed_rank: int | None = 0) -> None:
        """Replace all ranks, with the model as it was first loaded: `load` follows. None: no rank failed.

        Raises:
            RoleLost: the rank failed too often.
        """
        self.actors.restart_all(failed_rank)

    def submit_logprobs(
        self, shared: SharedBatch, entropy: bool = False, adapter: bool = True
    ) -> Pending[dict[str, Float32[np.ndarray, " tokens"]]]:
        """Submit the log-probabilities ("logprobs", and "entropy" if asked for) of all response tokens.
        They come in flat order.

        Without its `adapter` the model answers as it did before it got one.
        """
        plan = self._plan(shared.batch)
        refs = self.actors.submit_each(
            "logprobs", {"microbatches": plan}, batch=shared.ref, entropy=entropy, adapter=adapter
        )

        def finish(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
            index = _flat_index(shared.batch, plan)
            return {name: _scatter(index, [part[name] for part in parts]) for name in parts[0]}

        return Pending(self.actors, "log-probabilities", refs, finish)

    def submit_values(self, shared: SharedBatch) -> Pending[Float32[np.ndarray, " tokens"]]:
        """Submit the value of the state in which each response token was chosen, in flat order."""
        plan = self._plan(shared.batch)
        refs = self.actors.submit_each("values", {"microbatches": plan}, batch=shared.ref)
        return Pending(self.actors, "values", refs, lambda parts: _scatter(_flat_index(shared.batch, plan), parts))

    def submit_scores(self, shared: SharedBatch) -> Pending[Float32[np.ndarray, " rows"]]:
        """Submit the score of each row."""
        plan = self._plan(shared.batch)
        refs = self.actors.submit_each("scores", {"microbatches": plan}, batch=shared.ref)
        return Pending(self.actors, "scores", refs, lambda parts: _scatter(_rows(plan), parts))

    def submit_train_step(
        self,
        shared: SharedBatch,
        loss: Loss,
        columns: Columns | ray.ObjectRef,
        row_columns: Columns | ray.ObjectRef | None = None,
        rows: Int[np.ndarray, " minibatch_rows"] | None = None,
        groups: Int[np.ndarray, " rows"] | None = None,
        extra: ExtraBatch | None = None,
    ) -> Pending[dict[str, float]]:
        """Submit one optimizer step on some rows.

        Args:
            shared: the whole batch.
            loss: picklable; returns sums.
            columns: per-token arrays of the whole batch in flat order, or a reference to them (put once for several
                steps).
            row_columns: per-row arrays of the whole batch, likewise.
            rows: the minibatch; all rows unless given.
            groups: of the whole batch; rows of one group stay in one micro-batch.
            extra: another batch, all of whose rows the same step learns from.
        """
        plan = self._plan(shared.batch, rows, groups)
        each: dict[str, Any] = {"microbatches": plan}
        more: dict[str, Any] = {}
        if extra is not None:
            each["extra_microbatches"], more["extra"] = self._plan(extra.batch), ray.put(extra)
        refs = self.actors.submit_each(
            "train_step", each, batch=shared.ref, loss=loss, columns=columns, row_columns=row_columns or {}, **more
        )
        return Pending(self.actors, "optimizer step", refs, lambda parts: parts[0])

    def logprobs(
        self, shared: SharedBatch, entropy: bool = False, adapter: bool = True
    ) -> dict[str, Float32[np.ndarray, " tokens"]]:
        """Await `submit_logprobs`."""
        return self.submit_logprobs(shared, entropy, adapter).result()

    def values(self, shared: SharedBatch) -> Float32[np.ndarray, " tokens"]:
        """Await `submit_values`."""
        return self.submit_values(shared).result()

    def scores(self, shared: SharedBatch) -> Float32[np.ndarray, " rows"]:
        """Await `submit_scores`."""
        return self.submit_scores(shared).result()

    def train_step(self, *arguments: Any, **named: Any) -> dict[str, float]:
        """Await `submit_train_step`: the loss's metrics summed over ranks."""
        return self.submit_train_step(*arguments, **named).result()

    def save(self, directory: str) -> list[Part]:
        """Write the parts of all ranks below a directory or URL that all nodes see."""
        return [part for parts in self.actors.call("save", directory) for part in parts]

    def begin_save(self, directory: str) -> None:
        """Begin to write these parts: returns when all ranks have copied theirs, and can train on."""
        self.actors.call("begin_save", directory)

    def submit_saved(self, *, wait: bool) -> list[ray.ObjectRef]:
        """Ask each rank for the part that it began, see `TrainerRank.saved`; it answers between its other calls."""
        return self.actors.submit("saved", wait=wait)

    def load(self, directory: str, written: Sequence[Part] = ()) -> None:
        """Continue from a saved state, of any number of ranks and any ZeRO stage.

        Args:
            directory: of the parts.
            written: what the checkpoint's manifest says of them; the ranks compare their hashes.
        """
        self.actors.call("load", directory, written)

    def average_weights(self, decay: float) -> None:
        """Move the exponential moving average of the weights towards the present ones; the first call begins it."""
        self.actors.call("average_weights", decay)

    def export(self, directory: str, average: bool = False) -> None:
        """Write a Hugging Face directory, whole or not at all; with `average`, of the average of the weights."""
        self.actors.call("export", directory, average)

    def wake(self) -> None:
        """Bring the model back onto devices that it shares."""
        self.actors.turn("wake")

    def sleep(self) -> None:
        """Clear devices that are shared."""
        self.actors.turn("sleep")

    def free_cache(self) -> None:
        """Give back device memory that is kept for the next computation."""
        self.actors.turn("free_cache")

    def clear(self) -> None:
        """Clear the devices for roles that are not placed yet."""
        self.actors.call("sleep")

    def _plan(
        self, batch: TokenBatch, rows: np.ndarray | None = None, groups: np.ndarray | None = None
    ) -> list[list[np.ndarray]]:
        """Return row indices of the whole batch, `[data rank][micro-batch]`."""
        rows = np.arange(batch.rows) if rows is None else rows
        lengths, ranks = batch.lengths[rows], self.actors.mesh.data
        chosen = groups if groups is None else groups[rows]
        if chosen is None and self._takes_ragged_rows:
            # On several ranks, groups that are not small against the whole would leave some with less to do.
            share = int(lengths.sum()) // (LEAST_GROUPS_A_RANK * ranks) if ranks > 1 else self._tokens_per_microbatch
            prompts = batch.prompts
            most = min(share, self._tokens_per_microbatch)
            chosen = prompt_groups([prompts[row] for row in rows], lengths, most)
        plan = assign(lengths, ranks, self._tokens_per_microbatch, chosen, self._by_length)
        return [[rows[index] for index in microbatches] for microbatches in plan]


def _rows(plan: list[list[np.ndarray]]) -> np.ndarray:
    """Return rows in the order in which the ranks answer."""
    return np.concatenate([rows for microbatches in plan for rows in microbatches])


def _flat_index(batch: TokenBatch, plan: list[list[np.ndarray]]) -> np.ndarray:
    return batch.flat_index(_rows(plan).tolist())


def _scatter(index: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    answers = np.concatenate(parts)
    ordered = np.empty_like(answers)
    ordered[index] = answers
    return ordered

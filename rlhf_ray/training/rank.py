"""One rank of a model on DeepSpeed: forward passes, optimizer steps, state."""

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Shaped
from torch import Tensor, nn

from rlhf_ray.algorithms.losses import Loss
from rlhf_ray.checkpoint.background import BackgroundWrite
from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.models.device_memory import DeviceMemory, tensors_on, weights_of
from rlhf_ray.models.lora import adapter_off
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.training.export import adapter_files, export
from rlhf_ray.training.microbatch import (
    ExtraBatch,
    Microbatch,
    accumulate,
    build_microbatch,
    in_order,
    join_columns,
    join_outputs,
    zero_loss,
)
from rlhf_ray.training.network import Kind, check_network, is_packed, load_network, network_outputs
from rlhf_ray.training.optimizer import build_adamw, deepspeed_settings, effective_stage, learning_rate, refusals
from rlhf_ray.training.process import (
    RankDeadlines,
    ThreadDemand,
    Threads,
    device_of,
    join,
    limit_collectives,
    sum_over_ranks,
    wait_for_ranks,
)
from rlhf_ray.training.ragged import lay_out_passes
from rlhf_ray.training.saved_parts import part_name
from rlhf_ray.training.state import TrainedState, WeightAverage, has_moments

Microbatches = Sequence[np.ndarray]
"""Row indices of each micro-batch; every rank has as many micro-batches, some may be empty."""


class NonFinite(RlhfError):
    """A loss or gradient became infinite or not a number; the step was not taken, or the weights are spoiled."""


class TrainerRank:
    """One rank of a policy, a critic or a reward model; or of a frozen reference.

    All ranks must make the same calls with as many micro-batches: the passes hold collectives.
    """

    def __init__(
        self,
        kind: Kind,
        model: ModelConfig,
        trainer: TrainerConfig,
        total_steps: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        master: tuple[str, int] = ("127.0.0.1", 0),
        temperature: float = 1.0,
        trainable: bool = True,
        deadlines: RankDeadlines | None = None,
        demand: ThreadDemand | None = None,
        units: ScoreStatistics | None = None,
    ) -> None:
        """Load the model and meet the other ranks.

        Args:
            kind: policy (log-probabilities), critic (values of tokens) or reward (scores of rows).
            model: what to load.
            trainer: optimizer, sharding, placement.
            total_steps: optimizer steps of the whole run, for the schedule.
            seed: draws a new scalar head; seeds the rank's random numbers.
            rank: of this process.
            world: number of ranks.
            master: host and port where rank 0 listens.
            temperature: at which the policy samples; divides its logits.
            trainable: False for a frozen model: no optimizer, and DeepSpeed only to shard it (ZeRO-3).
            deadlines: of meeting the others, of loading, and of each collective after it; None: the usual ones.
            demand: who computes beside it on its CPUs; None: nobody.
            units: of the rewards that a critic foretells, where it begins as the model that gives them.

        Raises:
            BadInput: the model cannot be loaded, or computes something else here than in Transformers; or DeepSpeed
                settings contradict others.
            RendezvousFailed: the other ranks did not come.
        """
        self._deadlines = deadlines = deadlines or RankDeadlines()
        self.kind = kind
        self.rank, self.world = rank, world
        self.total_steps = total_steps
        self.steps_taken = 0
        self._model_config, self._trainer = model, trainer
        self._temperature = temperature
        self._device = device_of(trainer.gpus_per_worker)
        self._threads = Threads(self._device, trainer.threads or 1, demand or ThreadDemand())
        self._threads.train()
        self.stage = effective_stage(trainer, model.dtype) if trainable else (3 if trainer.zero_stage == 3 else 0)
        self._in_group = trainable or self.stage == 3
        if self._in_group:
            join(rank, world, master, self._device, deadlines)
        torch.manual_seed(seed + rank)
        self.network, self._wrapped = load_network(kind, model, trainer.lora, seed, units)
        self._packed = is_packed(model, self._wrapped)
        if self._in_group:
            # DeepSpeed makes groups of its own, whose collectives do not wait for one that still loads.
            wait_for_ranks(self._device)
        self._engine, self._optimizer = self._start(trainable)
        check_network(self._module, self._wrapped, model, self._packed, trainable, self._device)
        if self._in_group:
            limit_collectives(deadlines.collective)
        self._average: WeightAverage | None = None
        self._write = BackgroundWrite()
        self._spoiled = False
        constant = tuple if trainable else partial(weights_of, self.network)
        self.memory = DeviceMemory(self._device, partial(tensors_on, self._device), constant)

    def _start(self, trainable: bool) -> tuple[Any, torch.optim.Optimizer | None]:
        """Start DeepSpeed's engine and its optimizer; a frozen model that is not sharded needs neither."""
        if not trainable:
            self._wrapped.requires_grad_(False).eval()
            if self.stage != 3:
                self._wrapped.to(self._device)
                return None, None
        import deepspeed

        if trainable and self._trainer.gradient_checkpointing:
            self.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        settings = deepspeed_settings(self._trainer, self._model_config.dtype, self.world, trainable)
        optimizer = build_adamw(self._wrapped, self._trainer) if trainable else None
        with refusals():
            engine, *_ = deepspeed.initialize(
                model=self._wrapped, optimizer=optimizer, config=settings, dist_init_required=False
            )
        engine.train(trainable)
        return engine, optimizer

    def logprobs(
        self,
        batch: TokenBatch,
        microbatches: Microbatches,
        entropy: bool = False,
        temperature: float | None = None,
        adapter: bool = True,
    ) -> dict[str, Float32[np.ndarray, " tokens"]]:
        """Compute log-probabilities (and entropies) of response tokens, flat over this rank's rows in their order.

        `temperature` divides the logits; None: that at which the policy samples. Without its `adapter` the network
        answers as it did before it got one.
        """
        chosen = self._temperature if temperature is None else temperature
        with nullcontext() if adapter else adapter_off(self.network):
            return self._infer(batch, microbatches, lambda m: self._outputs(m, entropy, chosen))

    def values(self, batch: TokenBatch, microbatches: Microbatches) -> Float32[np.ndarray, " tokens"]:
        """Compute the value of the state in which each response token was chosen, flat over this rank's rows."""
        return self._infer(batch, microbatches, self._outputs)["values"]

    def scores(self, batch: TokenBatch, microbatches: Microbatches) -> Float32[np.ndarray, " rows"]:
        """Score at the last token of each of this rank's rows."""
        return self._infer(batch, microbatches, self._outputs)["scores"]

    @torch.no_grad()
    def _infer(self, batch: TokenBatch, microbatches: Microbatches, compute: Any) -> dict[str, np.ndarray]:
        self._threads.infer()
        self._module.eval()
        pieces: dict[str, list[Tensor]] = {}
        for rows in microbatches:
            parts = self._parts(batch, rows)
            for name, value in in_order(rows, parts, join_outputs([compute(part) for part in parts])).items():
                pieces.setdefault(name, []).append(value[:0] if parts[0].stand_in else value)
        return {name: torch.cat(parts).cpu().numpy() for name, parts in pieces.items()}

    def train_step(
        self,
        batch: TokenBatch,
        microbatches: Microbatches,
        loss: Loss,
        columns: Mapping[str, Shaped[np.ndarray, " tokens"]],
        row_columns: Mapping[str, Shaped[np.ndarray, " rows"]] | None = None,
        extra: ExtraBatch | None = None,
        extra_microbatches: Microbatches = (),
    ) -> dict[str, float]:
        """Take exactly one optimizer step on the sum of the loss over all micro-batches of all ranks.

        Args:
            batch: the whole batch, the same on all ranks.
            microbatches: this rank's rows; at least one micro-batch, as many on each rank.
            loss: returns sums; see `Loss`.
            columns: per-token arrays of the whole batch, in flat order, `weight` among them for losses of tokens.
            row_columns: per-row arrays of the whole batch.
            extra: another batch whose loss is added.
            extra_microbatches: this rank's rows of it, likewise.

        Returns:
            The loss's metrics summed over micro-batches and ranks; `loss`, `learning_rate`, and `grad_norm` before
            clipping.

        Raises:
            NonFinite: loss or gradient is not finite.
        """
        self._threads.train()
        self._module.train()
        totals: dict[str, Tensor] = {}
        last = len(microbatches) + len(extra_microbatches) - 1
        for index, rows in enumerate(microbatches):
            parts = self._parts(batch, rows)
            selected = join_columns(parts, columns, row_columns or {})
            self._backward(parts, loss, selected, totals, self._temperature, is_last=index == last)
        if extra is not None:
            for index, rows in enumerate(extra_microbatches, len(microbatches)):
                parts = self._parts(extra.batch, rows)
                selected = join_columns(parts, extra.columns, {})
                self._backward(parts, extra.loss, selected, totals, extra.temperature, is_last=index == last)
        summed = sum_over_ranks(self._device, totals)
        if not math.isfinite(summed["loss"]):
            raise self._non_finite("the loss", summed["loss"])
        rate = learning_rate(self.steps_taken, self._trainer, self.total_steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        summed["learning_rate"] = rate
        summed["grad_norm"] = self._step()
        self.steps_taken += 1
        return summed

    def _backward(
        self,
        parts: Sequence[Microbatch],
        loss: Loss,
        columns: Mapping[str, Tensor],
        totals: dict[str, Tensor],
        temperature: float,
        *,
        is_last: bool,
    ) -> None:
        """Run one backward pass after the forward passes of a micro-batch; its metrics are added to `totals`.

        `is_last`: no other follows in this optimizer step.
        """
        self._engine.set_gradient_accumulation_boundary(is_last)
        outputs = join_outputs([self._outputs(part, loss.needs_entropy, temperature) for part in parts])
        value, metrics = loss(outputs, columns)
        metrics = {"loss": value, **metrics}
        is_stand_in = parts[0].stand_in
        if is_stand_in:
            value = zero_loss(outputs)
        # DeepSpeed averages gradients over ranks; the loss is a sum over them.
        self._engine.backward(value * self.world, scale_wrt_gas=False)
        accumulate(totals, metrics, counts=not is_stand_in)

    def _step(self) -> float:
        """Clip and step; returns the norm of the whole gradient before clipping."""
        if self.stage == 0:
            norm = float(nn.utils.clip_grad_norm_(self._wrapped.parameters(), self._trainer.max_grad_norm))
            if not math.isfinite(norm):
                raise self._non_finite("the norm of the gradient", norm)
            self._engine.step()
            return norm
        self._engine.step()
        norm = float(self._engine.get_global_grad_norm())
        if not math.isfinite(norm):
            self._spoiled = True
            raise self._non_finite("the norm of the gradient", norm)
        return norm

    def _non_finite(self, what: str, value: float) -> NonFinite:
        return NonFinite(
            f"{self.kind} rank {self.rank}, optimizer step {self.steps_taken + 1}: {what} is {value}; "
            "resume from the last checkpoint with a lower learning rate, and look at the step's samples and rewards"
        )

    def _parts(self, batch: TokenBatch, rows: np.ndarray) -> list[Microbatch]:
        """Split a micro-batch into the passes that share a backward pass."""
        ragged = bool(self._wrapped.takes_ragged_rows)
        return lay_out_passes(batch, rows, self._packed, ragged, self.stage != 3, self._device)

    @property
    def _module(self) -> Any:
        return self._wrapped if self._engine is None else self._engine

    def _outputs(
        self, microbatch: Microbatch, need_entropy: bool = False, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        return network_outputs(self.kind, self._module, microbatch, need_entropy, temperature)

    def weight_source(self) -> nn.Module:
        """Return the network, whose parameters may be sharded (ZeRO-3), for weight transfer and export."""
        network: nn.Module = self.network
        return network

    def begin_save(self, directory: str) -> None:
        """Begin to write this rank's part of weights, optimizer state, counters and random state; all ranks together.

        Returns when they are copied to host memory; the file is written and hashed meanwhile, see `saved`.

        Raises:
            NonFinite: the weights were spoiled by a step that was not finite.
        """
        if self._spoiled:
            raise self._non_finite("a weight", math.nan)
        self._write.settle()  # two copies at a time would take twice the memory
        tensors = self._state().copied(self.steps_taken, self._average.weights if self._average else None)
        self._write.begin(directory, part_name(self.rank), tensors)

    def saved(self, *, wait: bool) -> list[Part] | None:
        """Return the part that `begin_save` began, its path relative to the directory; None while it is not whole.

        Raises:
            CheckpointError: the storage is full, or refuses to be written.
        """
        part = self._write.part(wait=wait)
        return None if part is None else [part]

    def save(self, directory: str) -> list[Part]:
        """Write this rank's part, and wait until it is whole; see `begin_save` and `saved`."""
        self.begin_save(directory)
        return self.saved(wait=True) or []

    def load(self, directory: str, written: Sequence[Part] = ()) -> None:
        """Continue from a saved state, of any number of ranks and any ZeRO stage; all ranks together.

        Args:
            directory: of the parts.
            written: what the checkpoint's manifest says of them; each rank hashes those that it reads.

        Raises:
            CheckpointError: parts are missing, or belong to another model.
            Damaged: one is not what was written.
        """
        self._write.settle()  # into a checkpoint that is given up
        self._materialize_moments()
        state = self._state()
        # One rank may still fetch its part while others wait for what is in it.
        limit_collectives(self._deadlines.load)
        self.steps_taken, average = state.load(directory, written)
        limit_collectives(self._deadlines.collective)
        self._average = WeightAverage(average) if average else None
        self._spoiled = False

    def average_weights(self, decay: float) -> None:
        """Move the average of the weights towards the present ones; the first call begins it. All ranks together."""
        self._average = self._average or WeightAverage()
        self._average.update(self._state(), decay)

    def _state(self) -> TrainedState:
        if self._engine is None or self._optimizer is None:
            raise RuntimeError("a frozen model has no state to save or load")
        sharded = self._engine.optimizer
        return TrainedState(self.network, self._optimizer, sharded, self.stage, self.rank, self.world, self._device)

    def _materialize_moments(self) -> None:
        """Take one step at learning rate 0: it changes no weight and makes optimizers create their moments."""
        if self._optimizer is None or has_moments(self._optimizer):
            return
        self._module.train()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = 0.0
        microbatch = build_microbatch(
            TokenBatch.from_sequences([], []), np.zeros(0, np.int64), self._packed, self._device
        )
        self._engine.set_gradient_accumulation_boundary(True)
        outputs = self._outputs(microbatch, False, self._temperature)
        self._engine.backward(zero_loss(outputs), scale_wrt_gas=False)
        self._engine.step()

    def export(self, directory: str, average: bool = False) -> None:
        """Write a Hugging Face directory that loads with plain `from_pretrained`; all ranks together, rank 0 writes.

        With lora it is the directory of an adapter, which loads with plain PEFT.

        `average`: the average of the weights, which must have begun, instead of the present ones.

        Raises:
            CheckpointError: the storage is full, or refuses to be written.
        """
        weights = None
        if average:
            if self._average is None:
                raise RuntimeError("there is no average of the weights: call average_weights first")
            weights = self._average.gather(self._state(), self._device, self.rank)
        export(self.network, self._model_config, directory, self.rank, weights)

    def adapter_files(self) -> dict[str, bytes]:
        """Return the adapter as PEFT writes it, by file, on rank 0; all ranks together."""
        return adapter_files(self.network, self._model_config, self.rank == 0)

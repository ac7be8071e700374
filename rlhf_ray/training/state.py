"""State of a trained model by parameter name, whatever number of ranks and ZeRO stage wrote it.

Each rank writes `rank_<r>.safetensors` with its share of the parameters: `master/<name>` (float32 weights),
`exp_avg/<name>` and `exp_avg_sq/<name>` (AdamW's moments), `average/<name>` where an average of the weights is kept,
and its own random state.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.checkpoint.storage import CheckpointError
from rlhf_ray.training.saved_parts import COUNTERS, SavedParts

MOMENTS = ("exp_avg", "exp_avg_sq")


class TrainedState:
    """Reads and writes the state of one rank's network and optimizer; all ranks must call together.

    Args:
        network: Hugging Face network, whose parameter names are used.
        optimizer: the AdamW that takes the steps.
        sharded: DeepSpeed's optimizer around it; the same one at stage 0.
        stage: ZeRO stage.
        rank: of this process.
        world: number of ranks.
        device: where the network computes.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        sharded: Any,
        stage: int,
        rank: int,
        world: int,
        device: torch.device,
    ) -> None:
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self._optimizer = optimizer
        self._stage, self._rank, self.world, self._device = stage, rank, world, device
        if stage in (1, 2) and has_moments(optimizer):
            _link_moments(sharded)

    def copied(self, steps_taken: int, average: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return what this rank's part holds, with its share of the average: copies, which later steps do not change.

        They are in host memory. All that a save keeps training from is to make them.
        """
        tensors: dict[str, Tensor] = {}
        for name, owner in self._owners().items():
            # Gathering a sharded parameter takes all ranks; only its owner keeps it.
            full = self._read(self._parameters[name])
            if owner == self._rank:
                tensors |= {
                    f"{key}/{name}": value.detach().to("cpu", torch.float32, copy=True) for key, value in full.items()
                }
        tensors |= {f"average/{name}": value.clone() for name, value in (average or {}).items()}
        tensors[COUNTERS] = torch.tensor([steps_taken, self.world, self._optimizer_step()], dtype=torch.int64)
        return tensors | _random_state(self._device)

    def load(self, directory: str, written: Sequence[Part] = ()) -> tuple[int, dict[str, Tensor]]:
        """Put a saved state in place, each part of it read by one rank.

        The optimizer's moments must exist already. `written` is what the manifest says of the parts.

        Returns:
            The number of optimizer steps it had taken, and this rank's share of the average; empty where it holds none.

        Raises:
            CheckpointError: parts are missing, or belong to another model.
            Damaged: one is not what was written.
        """
        average = {}
        with SavedParts(directory, self._rank, self.world, self._device, written).open() as parts:
            steps_taken, writers, optimizer_step = parts.counters
            for name, owner in self._owners().items():
                if f"master/{name}" not in parts:
                    raise CheckpointError(f"{directory}: holds no parameter {name}: it is of another model")
                self._check_shape(name, parts)
                full = {key: parts.get(f"{key}/{name}") for key in ("master", *MOMENTS)}
                self._write(self._parameters[name], full)
                if f"average/{name}" in parts:
                    value = parts.get(f"average/{name}")
                    if owner == self._rank:
                        average[name] = value.cpu()
            self._set_optimizer_step(optimizer_step)
            own = parts.own()
            if own is not None and self._rank < writers:
                _restore_random_state(own, self._device)
        return int(steps_taken), average

    def masters(self) -> Iterator[tuple[str, bool, Tensor]]:
        """Yield each parameter's float32 weights, whole, and whether this rank keeps them; all ranks take all."""
        for name, owner in self._owners().items():
            yield name, owner == self._rank, self._master(self._parameters[name])

    def owned(self) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """Yield name, owner and whole shape of each parameter, in the same order on all ranks."""
        for name, owner in self._owners().items():
            parameter = self._parameters[name]
            yield name, owner, tuple(getattr(parameter, "ds_shape", parameter.shape))

    def _master(self, parameter: nn.Parameter) -> Tensor:
        if self._stage == 0:
            return parameter.data
        from deepspeed.utils import safe_get_full_fp32_param

        return safe_get_full_fp32_param(parameter)

    def _owners(self) -> dict[str, int]:
        """Choose which rank writes each parameter: the least loaded one, largest parameters first."""
        load = [0] * self.world
        owners = {}
        for name in sorted(self._parameters, key=lambda n: (-_numel(self._parameters[n]), n)):
            owners[name] = load.index(min(load))
            load[owners[name]] += _numel(self._parameters[name])
        return {name: owners[name] for name in self._parameters}

    def _read(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """Read master weight and moments, whole; moments that no step made yet are zero."""
        master = self._master(parameter)
        if self._stage == 0:
            moments = self._optimizer.state.get(parameter, {})
            zeros = torch.zeros_like(parameter)
            return {"master": master} | {key: moments.get(key, zeros) for key in MOMENTS}
        from deepspeed.utils import safe_get_full_optimizer_state

        if not has_moments(self._optimizer):
            return {"master": master} | dict.fromkeys(MOMENTS, torch.zeros_like(master))
        return {"master": master} | {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}

    def _check_shape(self, name: str, parts: SavedParts) -> None:
        parameter = self._parameters[name]
        shape, found = tuple(getattr(parameter, "ds_shape", parameter.shape)), parts.shape(f"master/{name}")
        if found != shape:
            raise CheckpointError(f"{parts.directory}: {name} has shape {found}, this model has {shape}")

    def _write(self, parameter: nn.Parameter, placed: Mapping[str, Tensor]) -> None:
        if self._stage == 0:
            parameter.data.copy_(placed["master"])
            for key in MOMENTS:
                self._optimizer.state[parameter][key].copy_(placed[key])
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        safe_set_full_fp32_param(parameter, placed["master"])
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, placed[key], key)
        # The next forward pass computes with the low-precision copy, which setting the master does not touch.
        with self._gathered(parameter):
            parameter.data.copy_(placed["master"])

    @contextmanager
    def _gathered(self, parameter: nn.Parameter) -> Iterator[None]:
        if self._stage < 3:
            yield
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            yield

    def _optimizer_step(self) -> int:
        """Count the steps of the bias correction; 0 before the first."""
        steps = [int(moments["step"]) for moments in self._optimizer.state.values() if "step" in moments]
        return max(steps, default=0)

    def _set_optimizer_step(self, step: int) -> None:
        for moments in self._optimizer.state.values():
            current: Any = moments["step"]
            moments["step"] = current.fill_(step) if isinstance(current, Tensor) else step


def has_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether the optimizer took a step; ZeRO leaves empty entries in its state before that."""
    return any("exp_avg" in moments for moments in optimizer.state.values())


def _link_moments(sharded: Any) -> None:
    """Make ZeRO 1 and 2 find the moments of all parameter groups.

    DeepSpeed links moments to parameters while the first group takes its first step, so those of later groups stay
    unknown to `safe_get_full_optimizer_state`.
    """
    sharded._hp_optimizer_states_linked = False
    sharded._lazy_init_hp_params_optimizer_state()


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"random/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["random/cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(part: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(part["random/cpu"])
    if device.type == "cuda" and "random/cuda" in part:
        torch.cuda.set_rng_state(part["random/cuda"], device)


class WeightAverage:
    """float32 copies in host memory, each parameter kept by the rank that also saves it.

    average = decay x average + (1 - decay) x weight (Polyak and Juditsky 1992, with exponential weights).
    """

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        """Begin with this rank's weights as a checkpoint held them; None: with the present ones."""
        self.weights: dict[str, Tensor] = dict(weights or {})

    @torch.no_grad()
    def update(self, state: TrainedState, decay: float) -> None:
        """Move towards the present weights; the first call copies them. All ranks together."""
        for name, is_mine, master in state.masters():
            if not is_mine:
                continue
            present = master.detach().to("cpu", torch.float32)
            if name in self.weights:
                self.weights[name].lerp_(present, 1 - decay)
            else:
                self.weights[name] = present.clone()

    def gather(self, state: TrainedState, device: torch.device, rank: int) -> dict[str, Tensor]:
        """Return all weights on rank 0, nothing on the others; all ranks together."""
        whole: dict[str, Tensor] = {}
        for name, owner, shape in state.owned():
            if state.world > 1:
                source = self.weights.get(name, torch.zeros(0))
                value = source.to(device) if owner == rank else torch.empty(shape, device=device)
                torch.distributed.broadcast(value, owner)
            else:
                value = self.weights[name]
            if rank == 0:
                whole[name] = value.cpu()
        return whole

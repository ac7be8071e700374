"""How the roles are saved: all that they depend on as named tensors, in one file each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from rlhf_ray.checkpoint.parts import Part, open_tensors, write_tensors
from rlhf_ray.checkpoint.storage import join
from rlhf_ray.feedback.clips.clips import Clips

FILE = "rank_0.safetensors"

Tensors = Mapping[str, torch.Tensor]


class Saved(ABC):
    """A role whose state is tensors."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Return all that the next rounds depend on."""

    @abstractmethod
    def load(self, tensors: Tensors) -> None:
        """Load what `state` returned."""

    def save(self, directory: str) -> list[Part]:
        """Write the state into a checkpoint."""
        return [write_tensors(directory, FILE, self.state())]

    def restore(self, directory: str) -> None:
        """Read the state of a checkpoint."""
        with open_tensors(join(directory, FILE)) as tensors:
            self.load({name: tensors[name] for name in tensors})


def named(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Put tensors under a common prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return the tensors under a prefix, without it."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def moments(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return what an Adam remembers, as `<parameter>.<moment>`; nothing before its first step."""
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, own in state.items() for name, value in own.items()}


def give_moments(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Load what `moments` returned."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".")
        state.setdefault(int(number), {})[name] = value.clone()
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def tensors_of(clips: Clips) -> dict[str, torch.Tensor]:
    """Return clips for a checkpoint."""
    return {name: torch.tensor(array) for name, array in clips.arrays().items()}


def clips_of(tensors: Tensors) -> Clips:
    """Read the clips that `tensors_of` returned."""
    return Clips(**{name: tensor.numpy() for name, tensor in tensors.items()})

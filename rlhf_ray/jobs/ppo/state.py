"""What a PPO driver keeps from step to step; a checkpoint holds it beside the models."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rlhf_ray.algorithms.kl import AdaptiveKL, FixedKL
from rlhf_ray.algorithms.rewards import RunningMoments
from rlhf_ray.config.algorithm import KLConfig
from rlhf_ray.data.cursor import Cursor
from rlhf_ray.experience.costs import CostConstraint
from rlhf_ray.experience.experience import Experience
from rlhf_ray.jobs.ppo.data import Pretraining


@dataclass
class PPOState:
    """The data's position, and the numbers that move with the batches."""

    cursor: Cursor
    """Hands out prompts, each once in a pass over them."""
    kl: FixedKL | AdaptiveKL
    """Weight of the KL."""
    pretraining: Pretraining | None = None
    """Texts that are mixed in."""
    constraint: CostConstraint | None = None
    """Lambda and the newest costs; where costs have a critic."""
    moments: RunningMoments = field(default_factory=RunningMoments)
    """Of all rewards that were learned from."""

    def learned(self, experience: Experience) -> None:
        """Take over what a batch that was learned from changes."""
        self.kl = self.kl.update(experience.mean_kl, len(experience.samples))
        self.moments, self.constraint = experience.moments, experience.constraint
        self.cursor.finish(sample.prompt_id for sample in experience.samples if sample.index == 0)

    def to_json(self) -> dict[str, Any]:
        """Return all that `load` needs."""
        return {
            "prompts": self.cursor.state(),
            "kl_coefficient": self.kl.coefficient,
            "reward_moments": asdict(self.moments),
            "constraint": self.constraint.state() if self.constraint is not None else None,
            "ptx": self.pretraining.state() if self.pretraining is not None else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `to_json` returned.

        Raises:
            BadInput: the data have changed.
        """
        self.cursor.load(state["prompts"])
        self.kl = replace(self.kl, coefficient=state["kl_coefficient"])
        self.moments = RunningMoments(**state["reward_moments"])
        if self.constraint is not None and state["constraint"] is not None:
            self.constraint = self.constraint.restored(state["constraint"])
        if self.pretraining is not None and state["ptx"] is not None:
            self.pretraining.load(state["ptx"])


def kl_controller(kl: KLConfig) -> FixedKL | AdaptiveKL:
    """Return what weighs the KL: a fixed coefficient, or one that aims at a target."""
    if kl.target is None:
        return FixedKL(kl.coefficient)
    return AdaptiveKL(kl.coefficient, kl.target, kl.horizon)

"""Seconds that each phase of a job takes at least: operations at the GPU's peak, bytes at its bandwidth.

Samples are counted as long as they may be, so that a run of shorter ones may be faster; attention's own operations and
whatever does not reach the peak are left out, so that it will be slower. Roles on CPU are not in it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.jobs.tools import PlanConfig
from rlhf_ray.config.placement import GENERATE, SCORE, SYNC, TRAIN, PlacementConfig
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.jobs.plan.devices import awake
from rlhf_ray.jobs.plan.memory import WorkerMemory
from rlhf_ray.runs.layouts import JobLayout

FORWARD, BACKWARD = 2, 4
"""Operations for each parameter and token."""

TIMES_THROUGH_MEMORY = 3
"""Each byte of a weight that travels on a GPU is read and written: into the buffer, out of it, and into its layer."""


@dataclass(frozen=True)
class Floor:
    """Least seconds of a phase."""

    computing: float = 0
    moving: float = 0
    """Bytes of weights, keys and values; beside the computing."""
    turns: float = 0
    """Sleep and wake of roles that share devices; before and after."""

    @property
    def seconds(self) -> float:
        """Return all of them."""
        return max(self.computing, self.moving) + self.turns


def floors(
    config: JobConfig, part: JobLayout, footprints: Mapping[str, WorkerMemory], machine: PlanConfig
) -> dict[str, Floor]:
    """Return the floor of each phase: of a step where a policy learns from samples, of an optimizer step elsewhere.

    Args:
        config: of the job; those that do not train have none.
        part: its roles.
        footprints: of one worker of each role; those whose models are not known are missing.
        machine: speeds.
    """
    placements = {".".join(map(str, key)): placement for key, placement in config.placements().items()}
    known = {role: memory for role, memory in footprints.items() if placements[role].gpus_per_worker}
    found = _Floors(part, known, placements, machine)
    tokens = config.step_tokens()
    rollout, longest = placements.get("rollout"), config.longest_sample()
    if isinstance(rollout, RolloutConfig) and longest is not None and GENERATE in tokens:
        return {
            GENERATE: found.generate(tokens[GENERATE] // longest, longest, rollout.max_new_tokens),
            SCORE: found.passes(SCORE, tokens[SCORE]),
            TRAIN: found.passes(TRAIN, tokens[TRAIN]),
            SYNC: found.sync(),
        }
    return {phase: found.passes(phase, tokens[phase]) for phase in tokens}


@dataclass(frozen=True)
class _Floors:
    part: JobLayout
    footprints: Mapping[str, WorkerMemory]
    """Of roles on GPUs."""
    placements: Mapping[str, PlacementConfig]
    machine: PlanConfig

    def generate(self, samples: int, longest: int, new: int) -> Floor:
        """Count each engine's samples, as many at a time as its cache holds, which read all weights for each token."""
        engine = self.footprints.get("rollout")
        if engine is None or not engine.cached_tokens:
            return Floor()
        placement = self.placements["rollout"]
        own = math.ceil(samples / placement.workers)
        at_once = max(1, int(engine.cached_tokens // longest))
        token_bytes = engine.cache / engine.cached_tokens
        read = math.ceil(own / at_once) * new * engine.weights + own * token_bytes * new * (longest - new / 2)
        operations = FORWARD * engine.parameters * own * longest / max(1.0, placement.gpus_per_worker)
        return Floor(self._computing(operations), read / (self.machine.gpu_bandwidth * 1e9))

    def passes(self, phase: str, tokens: int) -> Floor:
        """Count the passes of one round of roles after another, and that each that takes turns comes and goes."""
        computing = turns = 0.0
        for at, names in awake(self.part):
            if at != phase:
                continue
            here = [role for role in self.footprints if role in names or role.partition(".")[0] in names]
            computing += max((self._operations(role, phase, tokens) for role in here), default=0.0)
            turns += max((self._coming_and_going(role) for role in here), default=0.0)
        return Floor(self._computing(computing), turns=turns)

    def sync(self) -> Floor:
        """Count the weights on their way: through a GPU's memory where engines share it, else over the network."""
        policy, engine = self.footprints.get("policy"), self.footprints.get("rollout")
        if policy is None or engine is None:
            return Floor()
        shared = "rollout" in self.part.layout.sharing("policy")
        speed = self.machine.gpu_bandwidth / TIMES_THROUGH_MEMORY if shared else self.machine.link_bandwidth
        parallel = max(1.0, self.placements["rollout"].gpus_per_worker)
        whole = engine.weights * parallel
        return Floor(moving=whole / (speed * 1e9), turns=self._coming_and_going("policy") if shared else 0.0)

    def _operations(self, role: str, phase: str, tokens: int) -> float:
        """Return the operations of one worker of a role."""
        memory, placement = self.footprints[role], self.placements[role]
        times = float(FORWARD)
        if phase == TRAIN and isinstance(placement, TrainerConfig):
            recomputed = FORWARD * placement.gradient_checkpointing
            # Frozen weights need no gradient of their own.
            times += recomputed + (BACKWARD if placement.lora is None else BACKWARD / 2)
        return times * memory.parameters * tokens / placement.workers

    def _computing(self, operations: float) -> float:
        return operations / (self.machine.gpu_tflops * 1e12)

    def _coming_and_going(self, role: str) -> float:
        if not self.part.layout.sharing(role):
            return 0.0
        memory = self.footprints[role]
        # A frozen model's copy is there already when it goes.
        ways = 2 if memory.gradients else 1
        return ways * memory.asleep / (self.machine.host_bandwidth * 1e9)

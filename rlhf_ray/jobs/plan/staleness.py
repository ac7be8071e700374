"""What `algorithm.max_staleness` is worth to a job, by the floors of its phases.

Engines work for the floor of GENERATE, trainers for those of all other phases. In turns a step takes the sum of both;
where engines write ahead it takes the longer one. More than one step ahead gains only what lengths that differ cost,
which floors do not know (docs/overlap.md).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf_ray.cluster.placement import Layout
from rlhf_ray.config.placement import GENERATE
from rlhf_ray.jobs.plan.floors import Floor

WORTH_IT = 1.1
"""How much faster a step has to be for older samples to be worth it."""


@dataclass(frozen=True)
class Tracks:
    """Seconds for which each side of a step works, and the GPUs on which it does."""

    engines: float
    trainers: float
    engine_gpus: float
    trainer_gpus: float

    @property
    def in_turns(self) -> float:
        """Return the seconds of a step in which each side waits for the other."""
        return self.engines + self.trainers

    @property
    def ahead(self) -> float:
        """Return the seconds of a step in which engines write the next batch meanwhile."""
        return max(self.engines, self.trainers)

    def split(self, engine_gpus: float) -> float:
        """Return the seconds of a step ahead where engines have so many of all GPUs, and both scale with theirs."""
        others = self.engine_gpus + self.trainer_gpus - engine_gpus
        return max(self.engines * self.engine_gpus / engine_gpus, self.trainers * self.trainer_gpus / others)


def staleness_lines(
    staleness: int, layout: Layout, gpus_per_engine: float, found: Mapping[str, Floor]
) -> Iterator[str]:
    """Say what writing ahead gains a job, and which split of its GPUs would gain most.

    Args:
        staleness: `algorithm.max_staleness` of the job.
        layout: of its roles, all there at the same time.
        gpus_per_engine: those of one rollout worker.
        found: the floor of each phase; nothing is said where one is not known.
    """
    writing = found[GENERATE].seconds
    learning = sum(floor.seconds for phase, floor in found.items() if phase != GENERATE)
    if not writing or not learning:
        return
    if layout.sharing("rollout"):
        yield (
            "Engines take turns with other roles on the same GPUs, so that none stands still while another works: "
            "max_staleness stays 0."
        )
        return
    own = _gpus(layout, {"rollout"})
    tracks = Tracks(writing, learning, len(own), len(_gpus(layout, {*layout.slots} - {"rollout"}) - own))
    gain = tracks.in_turns / tracks.ahead
    yield (
        f"By the floors engines write for {writing:.1f} s and the other roles work for {learning:.1f} s: a step takes "
        f"{tracks.in_turns:.1f} s at max_staleness 0, {tracks.ahead:.1f} s at 1 ({gain:.2f} times as fast); 2 gains "
        "where the lengths of answers differ much."
    )
    if gain >= WORTH_IT and not staleness:
        yield "Set algorithm.max_staleness: 1 if samples that are one version old will do; see docs/overlap.md."
    yield from _better_split(tracks, gpus_per_engine)


def _better_split(tracks: Tracks, gpus_per_engine: float) -> Iterator[str]:
    every = round(tracks.engine_gpus + tracks.trainer_gpus)
    step = max(1, round(gpus_per_engine))
    choices = range(step, every, step)
    if not choices:
        return
    best = min(choices, key=tracks.split)
    if tracks.split(best) * WORTH_IT < tracks.ahead:
        yield (
            f"With {best} of the {every} GPUs for engines and {every - best} for the other roles, instead of "
            f"{tracks.engine_gpus:g} and {tracks.trainer_gpus:g}, a step at 1 would take about "
            f"{tracks.split(best):.1f} s, if both scale with their GPUs."
        )


def _gpus(layout: Layout, roles: set[str]) -> set[tuple[str, int, int]]:
    return {
        (slot.group, slot.bundle, device) for role in roles for slot in layout.slots[role] for device in slot.devices
    }

"""Memory of each device and each machine: who is awake in which phase, by the table that the run takes turns by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf_ray.cluster.placement import rounds
from rlhf_ray.config.placement import SCORE, TRAIN
from rlhf_ray.jobs.plan.memory import OTHER_PROCESSES, WorkerMemory
from rlhf_ray.runs.layouts import JobLayout


def _turn(role: str) -> str:
    """Return under which name a role takes turns: all reward sources are one."""
    section = role.partition(".")[0]
    return section if section == "rewards" else role


def awake(part: JobLayout) -> Iterator[tuple[str, list[str]]]:
    """Yield by phase which roles work at the same time, by the names under which they take turns."""
    shares = part.layout.shares(_turn)
    for phase, sections in part.phases.items():
        in_order = [role for section in sections for role in part.layout.slots if role.partition(".")[0] == section]
        names = list(dict.fromkeys(map(_turn, in_order)))
        for together in rounds(names, shares) if part.in_turns and phase in (SCORE, TRAIN) else [names]:
            yield phase, together


Device = tuple[str, int, int]
"""Group, node, and GPU; on CPU the last is -1."""

CPU = -1
ALWAYS = "always"
"""In the place of a phase where no role of a device gives it to others."""


@dataclass(frozen=True)
class Peak:
    """The phase in which a device holds most."""

    phase: str
    roles: tuple[str, ...]
    """That are awake in it."""
    size: float
    """Bytes of them, and of what the others hold while they sleep."""


def device_loads(part: JobLayout, footprints: Mapping[str, WorkerMemory]) -> dict[Device, dict[str, int]]:
    """Count the workers of each role of a part on each device."""
    loads: dict[Device, dict[str, int]] = {}
    for role in footprints:
        for slot in part.layout.slots.get(role, ()):
            for device in slot.devices or (CPU,):
                load = loads.setdefault((slot.group, slot.bundle, device), {})
                load[role] = load.get(role, 0) + 1
    return loads


def peak(part: JobLayout, load: Mapping[str, int], footprints: Mapping[str, WorkerMemory]) -> Peak:
    """Find the peak of one device.

    Args:
        part: of the job.
        load: workers of each role on the device.
        footprints: bytes of one worker of each role.
    """
    takers = {role for role in load if part.layout.sharing(role)}

    def bytes_of(role: str, phase: str, names: list[str]) -> float:
        memory = footprints[role]
        if role not in takers:
            return memory.total
        return memory.in_phase(phase) if _turn(role) in names else memory.process

    if not part.phases or not takers:
        return Peak(ALWAYS, tuple(load), sum(footprints[role].total * count for role, count in load.items()))
    found = []
    for phase, names in awake(part):
        size = sum(bytes_of(role, phase, names) * count for role, count in load.items())
        found.append(Peak(phase, tuple(r for r in load if r not in takers or _turn(r) in names), size))
    return max(found, key=lambda one: one.size)


Machine = tuple[str, int]
"""Group and node."""


def host_loads(part: JobLayout, footprints: Mapping[str, WorkerMemory]) -> dict[Machine, dict[str, float]]:
    """Return the bytes of each role in the memory of each machine, what sleeps there among them.

    Host copies of what sleeps are made once and kept, those of a checkpoint go when it is written. On the first machine
    are also the driver and Ray.
    """
    loads: dict[Machine, dict[str, float]] = {}
    for role, memory in footprints.items():
        for slot in part.layout.slots.get(role, ()):
            load = loads.setdefault((slot.group, slot.bundle), {})
            kept = memory.asleep if part.layout.sharing(role) else 0.0
            load[role] = load.get(role, 0.0) + (memory.beside + memory.copied + kept if slot.devices else memory.total)
    home = min(loads, default=None, key=lambda machine: machine[1])
    if home is not None:
        loads[home] |= OTHER_PROCESSES
    return loads

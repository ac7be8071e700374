"""What each device must hold at once: the roles that are awake there in the same phase."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf_ray.cluster.placement import Layout
from rlhf_ray.jobs.estimates import Memory
from rlhf_ray.jobs.phases import Phases

Device = tuple[str, int, int]
"""Group, node, and GPU; on CPU the last is -1."""

ALWAYS = "always"
"""In the place of a phase where no role of a device gives it to others."""


@dataclass(frozen=True)
class Peak:
    """The phase in which a device holds most."""

    phase: str
    roles: tuple[str, ...]
    """That are awake in it."""
    size: float
    """Bytes of them all."""


def device_loads(layout: Layout, footprints: Mapping[str, Memory]) -> dict[Device, dict[str, float]]:
    """Bytes of each role on each device."""
    loads: dict[Device, dict[str, float]] = {}
    for role, memory in footprints.items():
        for slot in layout.slots[role]:
            for device in slot.devices or (-1,):
                load = loads.setdefault((slot.group, slot.bundle, device), {})
                load[role] = load.get(role, 0) + memory.total
    return loads


def peak(layout: Layout, phases: Phases, load: Mapping[str, float]) -> Peak:
    """The peak of one device.

    Args:
        layout: of all roles.
        phases: which sections' roles are awake when.
        load: bytes of each role on the device.
    """

    def awake() -> Iterator[Peak]:
        for phase, sections in phases.items():
            roles = tuple(r for r in load if r.partition(".")[0] in sections or not layout.sharing(r))
            yield Peak(phase, roles, sum(load[role] for role in roles))

    if not phases or not any(layout.sharing(role) for role in load):
        return Peak(ALWAYS, tuple(load), sum(load.values()))
    return max(awake(), key=lambda found: found.size)

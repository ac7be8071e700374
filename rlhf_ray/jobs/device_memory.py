"""What each device must hold at once: the roles that are awake there in the same phase."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rlhf_ray.jobs.estimates import Memory
from rlhf_ray.jobs.phases import Part

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
    """Bytes of them all."""


def device_loads(part: Part, footprints: Mapping[str, Memory]) -> dict[Device, dict[str, float]]:
    """Bytes of each role of a part on each device."""
    layout = part.layout
    loads: dict[Device, dict[str, float]] = {}
    for role, memory in footprints.items():
        for slot in layout.slots.get(role, ()):
            for device in slot.devices or (CPU,):
                load = loads.setdefault((slot.group, slot.bundle, device), {})
                load[role] = load.get(role, 0) + memory.total
    return loads


def add_processes(loads: dict[Device, dict[str, float]], processes: Mapping[str, float]) -> None:
    """Add what runs beside the roles, by name, to the first machine whose CPU they compute on."""
    home = min((device for device in loads if device[-1] == CPU), default=None, key=lambda device: device[1])
    if home is not None:
        loads[home] |= processes


def peak(part: Part, load: Mapping[str, float]) -> Peak:
    """The peak of one device.

    Args:
        part: of the job.
        load: bytes of each role on the device.
    """

    def shares(role: str) -> bool:
        return role in part.layout.slots and bool(part.layout.sharing(role))

    def awake() -> Iterator[Peak]:
        for phase, sections in part.phases.items():
            roles = tuple(r for r in load if r.partition(".")[0] in sections or not shares(r))
            yield Peak(phase, roles, sum(load[role] for role in roles))

    if not part.phases or not any(shares(role) for role in load):
        return Peak(ALWAYS, tuple(load), sum(load.values()))
    return max(awake(), key=lambda found: found.size)

"""Which worker runs where: pure arithmetic over the config, used to start roles and to plan them.

A group has one bundle for each node. A worker stays within one bundle. CPUs are reserved for each worker. GPUs may be
shared in time: roles of one group take different devices as long as there are any, then the same ones, and take turns
by sleeping and waking.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.cluster.errors import DoesNotFit
from rlhf_ray.config.placement import GroupConfig, PlacementConfig

# Sums of fractions such as 3 x 0.1 miss their decimal value by less than this.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Slot:
    """Place of one worker."""

    group: str
    bundle: int
    """Index of the node within the group."""

    devices: tuple[int, ...]
    """Indices of its GPUs among those that the group has of the node; empty on CPU."""

    cpus: float
    gpus: float


@dataclass
class _Bundle:
    """Resources that are left on one node of a group."""

    cpus: float
    loads: list[float]
    """Sum of the shares that all roles hold of each device."""


@dataclass
class Layout:
    """Places roles into groups one after another; equal calls give equal slots."""

    groups: Mapping[str, GroupConfig]
    slots: dict[str, list[Slot]] = field(default_factory=dict)
    """By role, in the order of ranks."""

    _bundles: dict[str, list[_Bundle]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, group in self.groups.items():
            if group.gpus_per_node > 1 and not _is_whole(group.gpus_per_node):
                raise DoesNotFit(f"groups.{name}.gpus_per_node: {group.gpus_per_node:g} must be whole, or below 1")
            devices = device_count(group)
            self._bundles[name] = [_Bundle(group.cpus_per_node, [0.0] * devices) for _ in range(group.nodes)]

    def add(self, role: str, placement: PlacementConfig) -> list[Slot]:
        """Place all workers of a role.

        Raises:
            DoesNotFit: the group does not exist or cannot hold the role; nothing was placed.
        """
        if role in self.slots:
            raise DoesNotFit(f"{role}: two roles have this name")
        group = _group_of(role, placement, self.groups)
        _check_worker(role, placement, group)
        bundles = self._bundles[placement.on]
        own = [[0.0] * device_count(group) for _ in bundles]
        left = [bundle.cpus for bundle in bundles]
        slots = []
        for rank in range(placement.workers):
            slot = _place(placement, group, bundles, own, left)
            if slot is None:
                raise DoesNotFit(_explain(role, rank, placement, group, bundles))
            left[slot.bundle] -= slot.cpus
            share = min(1.0, slot.gpus)
            for device in slot.devices:
                own[slot.bundle][device] += share
            slots.append(slot)
        for bundle, remaining, loads in zip(bundles, left, own, strict=True):
            bundle.cpus = remaining
            bundle.loads = [load + added for load, added in zip(bundle.loads, loads, strict=True)]
        self.slots[role] = slots
        return slots

    def sharing(self, role: str) -> set[str]:
        """Name the roles that a role takes turns with: together they ask more of a device than it has."""
        shared: set[str] = set()
        mine = {(slot.group, slot.bundle, device) for slot in self.slots[role] for device in slot.devices}
        for other, slots in self.slots.items():
            theirs = {(slot.group, slot.bundle, device) for slot in slots for device in slot.devices}
            if other != role and any(self._overloaded(*device) for device in mine & theirs):
                shared.add(other)
        return shared

    def shares(self, name_of: Callable[[str], str] = str) -> dict[str, set[str]]:
        """Return by name who must take turns with whom; `name_of` gives roles one name that do so as one."""
        found: dict[str, set[str]] = {}
        for role in self.slots:
            if others := {name_of(other) for other in self.sharing(role)}:
                found.setdefault(name_of(role), set()).update(others)
        return found

    def neighbours(self, role: str) -> int:
        """Return how many workers of roles with which it takes turns are on the fullest of a role's devices."""
        held: Counter[tuple[str, int, int]] = Counter()
        for other in self.sharing(role):
            held.update((slot.group, slot.bundle, device) for slot in self.slots[other] for device in slot.devices)
        own = {(slot.group, slot.bundle, device) for slot in self.slots[role] for device in slot.devices}
        return max((held[device] for device in own), default=0)

    def overlap(self, role: str, other: str) -> Literal["none", "some", "all"]:
        """Return how many of a role's devices are also the other role's; a role without devices has none."""
        devices, others = (
            {(slot.group, slot.bundle, device) for slot in self.slots[name] for device in slot.devices}
            for name in (role, other)
        )
        if not devices & others:
            return "none"
        return "all" if devices <= others else "some"

    def _overloaded(self, group: str, bundle: int, device: int) -> bool:
        return self._bundles[group][bundle].loads[device] > _capacity(self.groups[group]) + TOLERANCE


def rounds(names: Sequence[str], shares: Mapping[str, Collection[str]]) -> list[list[str]]:
    """Divide roles into rounds, so that nobody shares a device with another one of the same round.

    Roles keep their order, but that each joins the first round in which it is in nobody's way.

    Args:
        names: of roles, in the order of their turns.
        shares: of `Layout.shares`.
    """
    found: list[list[str]] = []
    for name in names:
        free = (one for one in found if not set(shares.get(name, ())).intersection(one))
        if (joined := next(free, None)) is None:
            found.append([name])
        else:
            joined.append(name)
    return found


def device_count(group: GroupConfig) -> int:
    """Return the GPUs of each node of a group; a fraction is a part of one."""
    return max(1, round(group.gpus_per_node)) if group.gpus_per_node > 0 else 0


def lay_out(groups: Mapping[str, GroupConfig], roles: Mapping[str, PlacementConfig]) -> Layout:
    """Place all roles of a job, in order.

    Raises:
        DoesNotFit: a role does not fit its group.
    """
    layout = Layout(groups)
    for role, placement in roles.items():
        layout.add(role, placement)
    return layout


def _capacity(group: GroupConfig) -> float:
    """Return what a group has of each of its devices."""
    return min(1.0, group.gpus_per_node)


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < TOLERANCE


def _group_of(role: str, placement: PlacementConfig, groups: Mapping[str, GroupConfig]) -> GroupConfig:
    if placement.on not in groups:
        known = ", ".join(sorted(groups)) or "none"
        raise DoesNotFit(f"{role}.on: there is no group {placement.on!r} (groups: {known})")
    return groups[placement.on]


def _check_worker(role: str, placement: PlacementConfig, group: GroupConfig) -> None:
    gpus = placement.gpus_per_worker
    if gpus > 1 and not _is_whole(gpus):
        raise DoesNotFit(f"{role}.gpus_per_worker: {gpus:g} must be whole, or below 1 to share one GPU")
    if gpus > group.gpus_per_node + TOLERANCE:
        raise DoesNotFit(
            f"{role}.gpus_per_worker: {gpus:g} is more than a node of group {placement.on!r} has "
            f"(gpus_per_node {group.gpus_per_node:g}); a worker stays within one node"
        )
    if placement.cpus_per_worker > group.cpus_per_node + TOLERANCE:
        raise DoesNotFit(
            f"{role}.cpus_per_worker: {placement.cpus_per_worker:g} is more than a node of group {placement.on!r} "
            f"has (cpus_per_node {group.cpus_per_node:g})"
        )


def _place(
    placement: PlacementConfig, group: GroupConfig, bundles: list[_Bundle], own: list[list[float]], left: list[float]
) -> Slot | None:
    """Find the next worker's slot: the first node where no device is shared in time, else where least is."""
    best: tuple[float, Slot] | None = None
    for index, bundle in enumerate(bundles):
        if left[index] + TOLERANCE < placement.cpus_per_worker:
            continue
        devices = _devices(placement.gpus_per_worker, _capacity(group), bundle.loads, own[index])
        if devices is None:
            continue
        share = min(1.0, placement.gpus_per_worker)
        over = sum(max(0.0, bundle.loads[device] + own[index][device] + share - _capacity(group)) for device in devices)
        if best is None or over < best[0] - TOLERANCE:
            slot = Slot(placement.on, index, devices, placement.cpus_per_worker, placement.gpus_per_worker)
            best = over, slot
    return best[1] if best else None


def _devices(gpus: float, capacity: float, loads: list[float], own: list[float]) -> tuple[int, ...] | None:
    """Choose devices for one worker on one node, for a role never more of a device than it has; None if none fit."""
    if gpus == 0:
        return ()
    share = min(1.0, gpus)

    def order(device: int) -> tuple[bool, float, int]:
        total = loads[device] + own[device]
        fits = total + share <= capacity + TOLERANCE
        # Where it fits, the fullest device first, to keep others whole; where it does not, the least loaded.
        return not fits, -total if fits else total, device

    allowed = [device for device in range(len(loads)) if own[device] + share <= capacity + TOLERANCE]
    count = max(1, round(gpus))
    chosen = sorted(allowed, key=order)[:count]
    return tuple(sorted(chosen)) if len(chosen) == count else None


def _explain(role: str, rank: int, placement: PlacementConfig, group: GroupConfig, bundles: list[_Bundle]) -> str:
    asked = f"{placement.workers} x {placement.cpus_per_worker:g} CPU"
    if placement.gpus_per_worker:
        asked += f" and {placement.gpus_per_worker:g} GPU"
    had = f"{group.nodes} x {group.cpus_per_node:g} CPU"
    if group.gpus_per_node:
        had += f" and {group.gpus_per_node:g} GPU"
    free = ", ".join(f"{bundle.cpus:g}" for bundle in bundles)
    return (
        f"{role}: worker {rank + 1} of {placement.workers} does not fit group {placement.on!r}: the role asks {asked}, "
        f"the group has {had} (CPUs left by the roles before it, by node: {free}); "
        f"enlarge groups.{placement.on} or ask less in {role}"
    )

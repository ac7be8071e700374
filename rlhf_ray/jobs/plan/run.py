"""`rlhf plan`: placement, memory of each device and batch arithmetic of a config, before anything starts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from rlhf_ray.cluster.placement import Layout
from rlhf_ray.config.checks.files import missing_files
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.jobs.tools import PlanConfig
from rlhf_ray.config.reading.verbs import load_job, split_command
from rlhf_ray.jobs.plan.devices import (
    ALWAYS,
    CPU,
    Device,
    Machine,
    Peak,
    device_loads,
    host_loads,
    peak,
)
from rlhf_ray.jobs.plan.floors import Floor, floors
from rlhf_ray.jobs.plan.footprints import role_footprints
from rlhf_ray.jobs.plan.memory import OTHER_PROCESSES, WorkerMemory
from rlhf_ray.jobs.plan.models import refuse_models
from rlhf_ray.jobs.plan.staleness import staleness_lines
from rlhf_ray.runs.layouts import JobLayout, checked_layouts, job_layouts

GIB = 2**30

TO_SAVE_MEMORY = "raise zero_stage or workers, set gradient_checkpointing, or lower tokens_per_microbatch"

TO_SAVE_HOST_MEMORY = "set reference.zero_stage to 3, or give roles GPUs of their own, so that they need not sleep"

TO_SAVE_MACHINE = "fewer workers, a smaller model, or lower tokens_per_microbatch; --host_gib says what a machine has"

TERABYTE = 931.0
"""GiB that machines with GPUs have, unless it is said."""

LESS_ENGINE = "lower rollout.engine.gpu_memory_utilization"

NARROWEST = 150
"""Columns that the tables need; narrower terminals and pipes wrap lines instead of cutting words."""


DOES_NOT_FIT = 1
"""Exit code where memory does not fit, or that of a model is not known, so that it may not."""


def run(config: PlanConfig) -> int:
    """Print the plan of a job's command line, `[VERB] CONFIG.yaml [--key value ...]`.

    Returns:
        The exit code, see `show`.

    Raises:
        BadInput: the config is wrong, or its roles do not fit their groups.
    """
    verb, arguments = split_command(config.job, "rlhf plan {verb} {path}")
    heading = "" if verb == config.job[0] else f"{arguments[0]} is planned as a config of rlhf {verb}"
    job = load_job(verb, arguments, check_files=False)
    return show(job, config, Console(width=max(Console().width, NARROWEST)), heading)


def show(config: JobConfig, machine: PlanConfig, console: Console, heading: str = "") -> int:
    """Print the plan of a checked config.

    Args:
        config: of any job.
        machine: memory and speed of machines and GPUs.
        console: where to print.
        heading: the first line, if any.

    Returns:
        0, or 1 where memory does not fit, or the config of a model could not be read, so that its memory is missing
        from the plan. A directory that an earlier job has yet to write is only warned of.

    Raises:
        BadInput: the roles do not fit their groups, weights cannot reach the engines, or a model cannot be what it is
            for.
    """
    parts = checked_layouts(config)
    missing = missing_files(config)
    models = refuse_models(config, {problem.key for problem in missing})
    if heading:
        console.print(heading, soft_wrap=True, highlight=False, markup=False)
    if any(part.layout.slots for part in parts):
        console.print(_placement_table(parts, config))
    footprints, unknown = role_footprints(config, machine.gpu_gib * GIB)
    loads, hosts = _loads(parts, footprints), _hosts(parts, footprints)
    on_gpus = any(load.on_gpu for load in loads)
    if footprints:
        beside = {} if on_gpus else {name: WorkerMemory(process=size) for name, size in OTHER_PROCESSES.items()}
        console.print(_memory_table(footprints | beside))
        console.print(_device_table(loads, machine.gpu_gib))
    if on_gpus:
        console.print(_host_table(hosts, machine.host_gib or TERABYTE))
        found = floors(config, parts[0], footprints, machine)
        console.print(_floor_table(found))
        staleness, rollout = config.max_staleness(), config.placements().get(("rollout",))
        if staleness is not None and rollout is not None:
            for line in staleness_lines(staleness, parts[0].layout, rollout.gpus_per_worker, found):
                console.print(line, highlight=False)
    for line in [*config.batch_lines(), *_cache_lines(config, footprints), *config.adapter_lines()]:
        console.print(line, highlight=False)
    files = [f"{'.'.join(map(str, problem.key))}: {problem.message}" for problem in missing]
    unused = [*config.batch_warnings(), *idle_groups(config)]
    overfull = _overfull(loads, footprints, machine.gpu_gib)
    if on_gpus:
        overfull += _overfull_hosts(hosts, machine.host_gib or TERABYTE)
    else:
        overfull += _overfull_machines(loads, machine.host_gib or _memory_here(config))
    for warning in [*unknown, *files, *models, *unused, *overfull]:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
    return DOES_NOT_FIT if unknown or overfull else 0


def _placement_table(parts: list[JobLayout], config: JobConfig) -> Table:
    # In a part of one phase all its roles are awake all the time.
    sharing = "takes turns with" if len(parts[0].phases) > 1 else "shares GPUs with"
    table = Table(title="Placement", title_justify="left")
    in_phase = ["in phase"] if len(parts) > 1 else []
    for name in ("role", *in_phase, "group", "workers", "CPUs each", "GPUs each", "devices", sharing):
        table.add_column(name, no_wrap=name == "in phase")
    placements = {".".join(map(str, key)): placement for key, placement in config.placements().items()}
    for part in parts:
        for role in part.layout.slots:
            placement = placements[role]
            numbers = (placement.workers, placement.cpus_per_worker, placement.gpus_per_worker)
            where = _device_names(part.layout, role), _turns(part.layout, role)
            phase = [*part.phases] if in_phase else []
            table.add_row(role, *phase, placement.on, *(f"{number:g}" for number in numbers), *where)
    return table


def _device_names(layout: Layout, role: str) -> str:
    """Name the GPUs of a role by node, with equal nodes in one entry: `nodes 0-3: GPU 0-7`."""
    by_node: dict[int, set[int]] = {}
    for slot in layout.slots[role]:
        by_node.setdefault(slot.bundle, set()).update(slot.devices)
    alike: dict[str, list[int]] = {}
    for node, devices in by_node.items():
        alike.setdefault(f"GPU {_ranges(devices)}" if devices else "CPU", []).append(node)
    return "; ".join(f"node {_ranges(nodes)}: {devices}" for devices, nodes in alike.items())


def _ranges(numbers: Iterable[int]) -> str:
    """Write `0, 1, 2, 5` as `0-2,5`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _turns(layout: Layout, role: str) -> str:
    """Name the roles with which a role shares GPUs."""
    sharing, group = layout.sharing(role), layout.slots[role][0].group
    others = {other for other, slots in layout.slots.items() if slots[0].group == group} - {role}
    return f"all on {group}" if others and sharing == others else ", ".join(sorted(sharing))


def _memory_table(footprints: dict[str, WorkerMemory]) -> Table:
    """Show the parts of each worker's memory; no phase needs all of them, so that their sum is no number of its own."""
    table = Table(title="Memory of one worker, GiB (estimate)", title_justify="left")
    columns = {
        "weights": [one.weights for one in footprints.values()],
        "gradients": [one.gradients for one in footprints.values()],
        "optimizer": [one.optimizer for one in footprints.values()],
        "activations": [one.activations for one in footprints.values()],
        "head": [one.head for one in footprints.values()],
        "gathered": [one.gathered for one in footprints.values()],
        "sync": [one.transfer for one in footprints.values()],
        "KV cache": [one.cache for one in footprints.values()],
        "process": [one.process for one in footprints.values()],
        "between": [
            one.fragmentation * (one.total - one.process - (0.0 if one.beside else one.copied))
            for one in footprints.values()
        ],
        "at most": [one.total for one in footprints.values()],
        "asleep, host": [one.asleep for one in footprints.values()],
        "saving, host": [one.copied for one in footprints.values()],
    }
    table.add_column("role")
    for name in columns:
        table.add_column(name, justify="right")
    for role, parts in zip(footprints, zip(*columns.values(), strict=True), strict=True):
        table.add_row(role, *map(_gib, parts))
    return table


def _cache_lines(config: JobConfig, footprints: dict[str, WorkerMemory]) -> Iterator[str]:
    """Say how much an engine can write at once."""
    engine, longest = footprints.get("rollout"), config.longest_sample()
    if engine is not None and engine.cached_tokens and longest is not None:
        samples = engine.cached_tokens // longest
        yield (
            f"The KV cache of an engine holds {engine.cached_tokens:,.0f} tokens (estimate): {samples:,.0f} of the "
            "longest samples at once."
        )


def idle_groups(config: JobConfig) -> Iterator[str]:
    """Name groups, and GPUs of groups, that no role uses."""
    placements = {".".join(map(str, key)): placement for key, placement in config.placements().items()}
    parts = [[placements[role] for role in part.layout.slots] for part in job_layouts(config)]
    for name, group in config.node_groups().items():
        # Roles of one part after another use the same GPUs.
        asked = [sum(role.gpus_per_worker * role.workers for role in part if role.on == name) for part in parts]
        if not any(role.on == name for part in parts for role in part):
            yield f"groups.{name}: no role is on it"
        elif max(asked) < group.gpus_per_node * group.nodes:
            yield f"groups.{name}: {group.gpus_per_node * group.nodes - max(asked):g} of its GPUs are not used"


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "-"


@dataclass(frozen=True)
class _Load:
    """Roles that a device holds in one part of a job."""

    device: Device
    roles: Mapping[str, float]
    """Bytes of each at most."""
    most: Peak

    @property
    def on_gpu(self) -> bool:
        return self.device[-1] != CPU

    @property
    def name(self) -> str:
        group, node, device = self.device
        return f"{group} node {node} " + (f"GPU {device}" if self.on_gpu else "CPU")


def _loads(parts: list[JobLayout], footprints: dict[str, WorkerMemory]) -> list[_Load]:
    """List the loads of all devices in all parts; where there are several, each has the name of its phase."""
    found = []
    for part in parts:
        counts = device_loads(part, footprints)
        on_gpus = any(device[-1] != CPU for device in counts)
        for device, load in counts.items():
            most = peak(part, load, footprints)
            roles = {role: footprints[role].total * count for role, count in load.items()}
            if device[-1] == CPU and not on_gpus and device[1] == 0:
                roles |= OTHER_PROCESSES
                most = replace(most, size=most.size + sum(OTHER_PROCESSES.values()))
            [phase, *_] = part.phases or [ALWAYS]
            found.append(_Load(device, roles, most if len(parts) == 1 else replace(most, phase=phase)))
    return found


def _hosts(parts: list[JobLayout], footprints: dict[str, WorkerMemory]) -> dict[Machine, dict[str, float]]:
    """Return loads of all machines, of parts one after another the larger."""
    found: dict[Machine, dict[str, float]] = {}
    for part in parts:
        for machine, load in host_loads(part, footprints).items():
            if sum(load.values()) > sum(found.get(machine, {}).values()):
                found[machine] = load
    return found


def _device_table(loads: list[_Load], gpu_gib: float) -> Table:
    table = Table(title="Memory of each device, GiB (estimate)", title_justify="left")
    for name in ("devices", "at once", "of", "in phase", "roles"):
        table.add_column(name, justify="right" if name in {"at once", "of"} else "left")
    alike: dict[tuple[Any, ...], list[_Load]] = {}
    for load in loads:
        alike.setdefault((tuple(sorted(load.roles.items())), load.on_gpu, load.most), []).append(load)
    for (roles, on_gpu, most), places in alike.items():
        of = f"{gpu_gib:g}" if on_gpu else ""
        table.add_row(
            _shown([load.name for load in places]), f"{most.size / GIB:.2f}", of, most.phase, _sizes(dict(roles))
        )
    return table


def _host_table(hosts: Mapping[Machine, Mapping[str, float]], host_gib: float) -> Table:
    table = Table(title="Host memory of each machine, GiB (estimate)", title_justify="left")
    for name in ("machines", "at once", "of", "roles, asleep and awake"):
        table.add_column(name, justify="right" if name in {"at once", "of"} else "left")
    alike: dict[tuple[tuple[str, float], ...], list[Machine]] = {}
    for machine, load in hosts.items():
        alike.setdefault(tuple(sorted(load.items())), []).append(machine)
    for roles, machines in alike.items():
        names = _shown([f"{group} node {node}" for group, node in machines])
        size = sum(size for _, size in roles)
        table.add_row(names, f"{size / GIB:.2f}", f"{host_gib:g}", _sizes(dict(roles)))
    return table


def _shown(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]} ({len(names)})"


def _sizes(roles: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {size / GIB:.2f}" for role, size in roles.items())


def _floor_table(found: Mapping[str, Floor]) -> Table:
    table = Table(title="Floor of each phase, seconds, all samples as long as they may be", title_justify="left")
    for name in ("phase", "at least", "computing", "moving bytes", "sleep and wake"):
        table.add_column(name, justify="left" if name == "phase" else "right")
    for phase, floor in found.items():
        table.add_row(phase, *(f"{value:.1f}" for value in (floor.seconds, floor.computing, floor.moving, floor.turns)))
    return table


def _overfull(loads: list[_Load], footprints: dict[str, WorkerMemory], gpu_gib: float) -> list[str]:
    found: dict[str, None] = {}
    for load in loads:
        most = load.most
        if not load.on_gpu or most.size <= gpu_gib * GIB:
            continue
        ways = f"{LESS_ENGINE}, {TO_SAVE_MEMORY}" if "rollout" in most.roles else TO_SAVE_MEMORY
        when = "" if most.phase == ALWAYS else f" in phase {most.phase}"
        needed = f"{', '.join(most.roles)} need {most.size / GIB:.0f} GiB of a GPU's {gpu_gib:g}{when}"
        found[f"group {load.device[0]}: {needed}; {ways}"] = None
    engine = footprints.get("rollout")
    if engine is not None and engine.cache == 0:
        found["rollout: the weights leave no room for the KV cache; raise rollout.gpus_per_worker"] = None
    return list(found)


def _memory_here(config: JobConfig) -> float | None:
    """Return the GiB of this machine, where a job without GPUs takes one machine; None where it takes several."""
    if sum(group.nodes for group in config.node_groups().values()) != 1:
        return None
    return float(psutil.virtual_memory().total) / GIB


def _overfull_machines(loads: list[_Load], host_gib: float | None) -> list[str]:
    """Name machines without GPUs that hold more than they have; None: it is not known what they have."""
    found: dict[str, None] = {}
    for load in loads:
        if host_gib is not None and load.most.size > host_gib * GIB:
            largest = ", ".join(sorted(load.roles, key=lambda role: -load.roles[role])[:3])
            needed = f"{load.most.size / GIB:.0f} GiB of a machine's {host_gib:.0f}, most of them for {largest}"
            found[f"group {load.device[0]}: {needed}; {TO_SAVE_MACHINE}"] = None
    return list(found)


def _overfull_hosts(hosts: Mapping[Machine, Mapping[str, float]], host_gib: float) -> list[str]:
    found: dict[str, None] = {}
    for (group, _), load in hosts.items():
        if (size := sum(load.values())) > host_gib * GIB:
            largest = ", ".join(sorted(load, key=lambda role: -load[role])[:3])
            needed = f"{size / GIB:.0f} GiB of a machine's {host_gib:g} of host memory, most of them for {largest}"
            found[f"group {group}: {needed}; {TO_SAVE_HOST_MEMORY}"] = None
    return list(found)

"""`rlhf plan`: placement, memory of each device and batch arithmetic of a config, before anything starts."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf_ray.cluster.placement import Layout
from rlhf_ray.config.checks.files import missing_files
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.jobs.tools import PlanConfig
from rlhf_ray.config.reading.verbs import load_job, split_command
from rlhf_ray.jobs.plan.footprints import role_footprints
from rlhf_ray.jobs.plan.memory import WorkerMemory, other_processes
from rlhf_ray.jobs.plan.models import refuse_models
from rlhf_ray.runs.layouts import JobLayout, checked_layouts, job_layouts

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


def device_loads(part: JobLayout, footprints: Mapping[str, WorkerMemory]) -> dict[Device, dict[str, float]]:
    """Return the bytes of each role of a part on each device."""
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


def peak(part: JobLayout, load: Mapping[str, float]) -> Peak:
    """Find the peak of one device.

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


GIB = 2**30

TO_SAVE_MEMORY = "raise zero_stage or workers, set gradient_checkpointing, or lower tokens_per_microbatch"

LESS_ENGINE = "lower rollout.engine.gpu_memory_utilization"

NARROWEST = 100
"""Columns that the tables need; narrower terminals and pipes wrap lines instead of cutting words."""


INCOMPLETE = 1
"""Exit code where the memory of a model is not known: what was planned may not fit."""


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
    return show(job, config.gpu_gib, Console(width=max(Console().width, NARROWEST)), heading)


def show(config: JobConfig, gpu_gib: float, console: Console, heading: str = "") -> int:
    """Print the plan of a checked config.

    Args:
        config: of any job.
        gpu_gib: memory of each GPU.
        console: where to print.
        heading: the first line, if any.

    Returns:
        0, or 1 where the config of a model could not be read, so that its memory is missing from the plan. A directory
        that an earlier job has yet to write is only warned of.

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
    footprints, unknown = role_footprints(config, gpu_gib * GIB)
    loads = _loads(config, parts, footprints)
    if footprints:
        console.print(_memory_table(footprints, other_processes(config)))
        console.print(_device_table(loads, gpu_gib))
    for line in [*config.batch_lines(), *_cache_lines(config, footprints), *config.adapter_lines()]:
        console.print(line, highlight=False)
    files = [f"{'.'.join(map(str, problem.key))}: {problem.message}" for problem in missing]
    unused = [*config.batch_warnings(), *idle_groups(config)]
    for warning in [*unknown, *files, *models, *unused, *_overfull(loads, footprints, gpu_gib)]:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)
    return INCOMPLETE if unknown else 0


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


def _memory_table(footprints: dict[str, WorkerMemory], processes: Mapping[str, float]) -> Table:
    table = Table(title="Memory of one worker, GiB (estimate)", title_justify="left")
    for name in ("role", "weights", "gradients", "optimizer", "activations", "KV cache", "process", "sum"):
        table.add_column(name, justify="left" if name == "role" else "right")
    beside = {name: WorkerMemory(process=size) for name, size in processes.items()}
    for role, memory in (footprints | beside).items():
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.cache, memory.process)
        table.add_row(role, *(_gib(part) for part in (*parts, memory.total)))
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
    """Load of a device in one part of a job."""

    device: Device
    roles: Mapping[str, float]
    """Bytes of each."""
    most: Peak

    @property
    def on_gpu(self) -> bool:
        return self.device[-1] != CPU

    @property
    def name(self) -> str:
        group, node, device = self.device
        return f"{group} node {node} " + (f"GPU {device}" if self.on_gpu else "CPU")


def _loads(config: JobConfig, parts: list[JobLayout], footprints: dict[str, WorkerMemory]) -> list[_Load]:
    """List the loads of all devices in all parts; where there are several, each has the name of its phase."""
    found = []
    for part in parts:
        loads = device_loads(part, footprints)
        add_processes(loads, other_processes(config))
        for device, roles in loads.items():
            most = peak(part, roles)
            [phase, *_] = part.phases or [ALWAYS]
            found.append(_Load(device, roles, most if len(parts) == 1 else replace(most, phase=phase)))
    return found


def _device_table(loads: list[_Load], gpu_gib: float) -> Table:
    table = Table(title="Memory of each device, GiB (estimate)", title_justify="left")
    for name in ("devices", "at once", "of", "in phase", "roles"):
        table.add_column(name, justify="right" if name in {"at once", "of"} else "left")
    alike: dict[tuple[Any, ...], list[_Load]] = {}
    for load in loads:
        alike.setdefault((tuple(sorted(load.roles.items())), load.on_gpu, load.most), []).append(load)
    for (roles, on_gpu, most), places in alike.items():
        names = [load.name for load in places]
        shown = ", ".join(names) if len(names) <= 2 else f"{names[0]} ... {names[-1]} ({len(names)})"
        sizes = ", ".join(f"{role} {size / GIB:.2f}" for role, size in roles)
        table.add_row(shown, f"{most.size / GIB:.2f}", f"{gpu_gib:g}" if on_gpu else "", most.phase, sizes)
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

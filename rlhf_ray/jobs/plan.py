"""`rlhf plan`: placement, memory of each device and batch arithmetic of a config, before anything starts."""

from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from rlhf_ray.cluster.errors import DoesNotFit
from rlhf_ray.cluster.placement import Layout, lay_out
from rlhf_ray.config.base import Section
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.files import missing_files
from rlhf_ray.config.inference import GenerateConfig
from rlhf_ray.config.parts import groups_of, placements_of
from rlhf_ray.config.plan import PlanConfig
from rlhf_ray.config.ppo import PPOConfig
from rlhf_ray.config.verbs import SCHEMAS, deduce_verb, load_job
from rlhf_ray.jobs.arithmetic import adapter_lines, batch_lines, longest_sample, warnings_of
from rlhf_ray.jobs.device_memory import ALWAYS, device_loads, peak
from rlhf_ray.jobs.estimates import Memory
from rlhf_ray.jobs.footprints import role_footprints
from rlhf_ray.jobs.phases import Phases, phases_of
from rlhf_ray.rollout.engine_arguments import choose_transport

GIB = 2**30

TO_SAVE_MEMORY = "raise zero_stage or workers, set gradient_checkpointing, or lower tokens_per_microbatch"

LESS_ENGINE = "lower rollout.engine.gpu_memory_utilization"

NARROWEST = 100
"""Columns that the tables need; narrower terminals and pipes wrap lines instead of cutting words."""


def run(config: PlanConfig) -> None:
    """Print the plan of a job's command line, `[VERB] CONFIG.yaml [--key value ...]`.

    Raises:
        BadInput: the config is wrong, or its roles do not fit their groups.
    """
    verb, *arguments = config.job
    if verb not in SCHEMAS:
        verb, arguments = deduce_verb(verb), list(config.job)
    job = load_job(verb, arguments, check_files=False)
    show(job, config.gpu_gib, Console(width=max(Console().width, NARROWEST)))


def show(config: Section, gpu_gib: float, console: Console) -> None:
    """Print the plan of a checked config.

    Args:
        config: of any job.
        gpu_gib: memory of each GPU.
        console: where to print.

    Raises:
        BadInput: the roles do not fit their groups, or weights cannot reach the engines.
    """
    roles = {".".join(map(str, key)): placement for key, placement in placements_of(config).items()}
    layout = layout_of(config)
    phases = phases_of(config)
    if roles:
        # In a job of one phase all its roles are awake all the time.
        console.print(_placement_table(layout, roles, "takes turns with" if len(phases) > 1 else "shares GPUs with"))
    footprints, unknown = role_footprints(config, gpu_gib * GIB)
    if footprints:
        console.print(_memory_table(footprints))
        console.print(_device_table(layout, phases, footprints, gpu_gib))
    for line in [*batch_lines(config), *_cache_lines(config, footprints), *adapter_lines(config)]:
        console.print(line, highlight=False)
    missing = missing_files(config)
    files = [f"{'.'.join(map(str, problem.key))}: {problem.message}" for problem in missing]
    for warning in [*unknown, *files, *warnings_of(config), *_overfull(layout, phases, footprints, gpu_gib)]:
        console.print(f"[yellow]warning[/yellow] {warning}", highlight=False)


def layout_of(config: Section) -> Layout:
    """Place all roles of a job.

    Raises:
        BadInput: they do not fit their groups, or weights cannot reach the engines where they are.
    """
    roles = {".".join(map(str, key)): placement for key, placement in placements_of(config).items()}
    try:
        layout = lay_out(groups_of(config), roles)
    except DoesNotFit as error:
        raise BadInput(str(error)) from None
    if isinstance(config, PPOConfig):
        overlap = layout.overlap("rollout", "policy")
        if choose_transport(config.rollout, overlap) == "ipc" and overlap == "none":
            raise BadInput(
                "rollout.transport: ipc is for engines on the policy's GPUs, and these are on others; use auto, which "
                "is nccl here"
            )
    return layout


def _placement_table(layout: Layout, roles: dict[str, Any], sharing: str) -> Table:
    table = Table(title="Placement", title_justify="left")
    for name in ("role", "group", "workers", "CPUs each", "GPUs each", "devices", sharing):
        table.add_column(name)
    for role, placement in roles.items():
        numbers = (placement.workers, placement.cpus_per_worker, placement.gpus_per_worker)
        where = _device_names(layout, role), _turns(layout, role)
        table.add_row(role, placement.on, *(f"{number:g}" for number in numbers), *where)
    return table


def _device_names(layout: Layout, role: str) -> str:
    """GPUs of a role by node, with equal nodes in one entry: `nodes 0-3: GPU 0-7`."""
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
    """Roles with which a role shares GPUs."""
    sharing, group = layout.sharing(role), layout.slots[role][0].group
    others = {other for other, slots in layout.slots.items() if slots[0].group == group} - {role}
    return f"all on {group}" if others and sharing == others else ", ".join(sorted(sharing))


def _memory_table(footprints: dict[str, Memory]) -> Table:
    table = Table(title="Memory of one worker, GiB (estimate)", title_justify="left")
    for name in ("role", "weights", "gradients", "optimizer", "activations", "KV cache", "sum"):
        table.add_column(name, justify="left" if name == "role" else "right")
    for role, memory in footprints.items():
        parts = (memory.weights, memory.gradients, memory.optimizer, memory.activations, memory.cache, memory.total)
        table.add_row(role, *(_gib(part) for part in parts))
    return table


def _cache_lines(config: Section, footprints: dict[str, Memory]) -> Iterator[str]:
    """How much an engine can write at once."""
    engine = footprints.get("rollout")
    if engine is not None and engine.cached_tokens and isinstance(config, PPOConfig | GenerateConfig):
        samples = engine.cached_tokens // longest_sample(config)
        yield (
            f"The KV cache of an engine holds {engine.cached_tokens:,.0f} tokens (estimate): {samples:,.0f} of the "
            "longest samples at once."
        )


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}" if size else "-"


def _device_table(layout: Layout, phases: Phases, footprints: dict[str, Memory], gpu_gib: float) -> Table:
    table = Table(title="Memory of each device, GiB (estimate)", title_justify="left")
    for name in ("devices", "at once", "of", "in phase", "roles"):
        table.add_column(name, justify="right" if name in {"at once", "of"} else "left")
    alike: dict[tuple[Any, ...], list[str]] = {}
    for (group, node, device), load in device_loads(layout, footprints).items():
        where = f"{group} node {node} " + (f"GPU {device}" if device >= 0 else "CPU")
        alike.setdefault((tuple(sorted(load.items())), device >= 0), []).append(where)
    for (load, on_gpu), places in alike.items():
        shown = ", ".join(places) if len(places) <= 2 else f"{places[0]} ... {places[-1]} ({len(places)})"
        most = peak(layout, phases, dict(load))
        sizes = ", ".join(f"{role} {size / GIB:.2f}" for role, size in load)
        table.add_row(shown, f"{most.size / GIB:.2f}", f"{gpu_gib:g}" if on_gpu else "", most.phase, sizes)
    return table


def _overfull(layout: Layout, phases: Phases, footprints: dict[str, Memory], gpu_gib: float) -> list[str]:
    found: dict[str, None] = {}
    for (group, _, device), load in device_loads(layout, footprints).items():
        most = peak(layout, phases, load)
        if device < 0 or most.size <= gpu_gib * GIB:
            continue
        ways = f"{LESS_ENGINE}, {TO_SAVE_MEMORY}" if "rollout" in most.roles else TO_SAVE_MEMORY
        when = "" if most.phase == ALWAYS else f" in phase {most.phase}"
        needed = f"{', '.join(most.roles)} need {most.size / GIB:.0f} GiB of a GPU's {gpu_gib:g}{when}"
        found[f"group {group}: {needed}; {ways}"] = None
    engine = footprints.get("rollout")
    if engine is not None and engine.cache == 0:
        found["rollout: the weights leave no room for the KV cache; raise rollout.gpus_per_worker"] = None
    return list(found)

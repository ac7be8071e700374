"""The run's Ray: joined or started, with the placement groups of the config."""

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.cluster.endpoint import LOOPBACK, free_port, free_port_on, run_on
from rlhf_ray.cluster.errors import DeadlineExceeded, ResourcesUnavailable
from rlhf_ray.cluster.niceness import yield_no_more
from rlhf_ray.cluster.outcome import wait
from rlhf_ray.cluster.placement import Layout, Slot
from rlhf_ray.cluster.session import Say, ray_session, silent
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.placement import ClusterConfig, DeadlineConfig, GroupConfig

if TYPE_CHECKING:
    from rlhf_ray.cluster.group import ActorGroup

# Where resources are slow to come the user sees what is missing long before the deadline.
NOTICE_SECONDS = 10.0

LOOK_SECONDS = 0.5
"""Between two looks at what Ray knows of its nodes."""

LOOK_AT_NODES_SECONDS = 30.0
"""For all nodes to start a process that says what it was given."""

END_SECONDS = 15.0
"""In which workers put away what they have outside of their processes; one that hangs is not waited for any longer."""

HURRIED_SECONDS = 4.0
"""What is left of END_SECONDS at a second Ctrl-C."""

logger = logging.getLogger(__name__)


class Cluster:
    """Placement groups of one run, and what was placed into them."""

    def __init__(
        self,
        groups: Mapping[str, GroupConfig],
        deadlines: DeadlineConfig,
        placed: dict[str, PlacementGroup],
        say: Say = silent,
        environment: EnvironmentConfig | None = None,
    ) -> None:
        self.say = say
        """Takes words for the person who watches."""
        self.layout = Layout(groups)
        self.deadlines = deadlines
        self.environment = environment or EnvironmentConfig()
        """Variables that the user gives to workers."""
        self.placement_groups = placed
        self.turns: list[tuple[str, str]] = []
        """(role, "wake", "sleep" or "free_cache"), in the order in which they happened."""

        self._roles: list[ActorGroup] = []
        self._given_ports: set[tuple[str, int]] = set()
        """Node and port of every process group so far."""
        self._groups = groups
        self._nodes = {name: _nodes_of(placed[name]) for name in groups}
        self._devices = _probe_devices(self._gpu_bundles(), placed, deadlines.start_seconds, "cluster")
        self.one_node = len(self._used()) == 1

    def device_ids(self, slot: Slot) -> list[str]:
        """List a worker's CUDA devices, as its node numbers them."""
        ids = self._devices.get((slot.group, slot.bundle), [])
        return [ids[device] for device in slot.devices]

    def node(self, slot: Slot) -> str:
        """Return Ray's id of the node on which a worker runs."""
        return self._node((slot.group, slot.bundle))

    def look_again(self, role: str, slots: Sequence[Slot]) -> None:
        """Find out where workers are to start: Ray moves what was on a machine that died to another one.

        Args:
            role: whose workers, for messages.
            slots: their places.

        Raises:
            DeadlineExceeded: none took its place within `deadlines.start_seconds`.
            RoleDied, RoleRaised: the new machine does not say which GPUs it gave.
        """
        bundles = {(slot.group, slot.bundle) for slot in slots}
        nodes = {self._node(bundle) for bundle in bundles}
        if all(_lives(node, self.deadlines.start_seconds) for node in nodes):
            return
        logger.warning("a machine of %s left the cluster; waiting for another one in its place", role)
        found = self._moved(role, bundles)
        moved = {
            key: gpus for key, gpus in self._gpu_bundles().items() if key in bundles and found[key] != self._node(key)
        }
        self._devices |= _probe_devices(moved, self.placement_groups, self.deadlines.start_seconds, role)
        for (group, bundle), node in found.items():
            self._nodes[group][bundle] = node
        # Those who still run were told at their start by which network they meet.
        self.one_node = self.one_node and len(self._used()) == 1
        logger.warning("%s has a machine again", role)

    def _moved(self, role: str, bundles: set[tuple[str, int]]) -> dict[tuple[str, int], str]:
        """Find the nodes of some bundles once all of them live."""
        began = time.monotonic()
        noticed = False
        groups = sorted({group for group, _ in bundles})
        while True:
            nodes = {name: _nodes_of(self.placement_groups[name]) for name in groups}
            found = {(group, bundle): nodes[group][bundle] for group, bundle in bundles}
            if _alive().issuperset(found.values()):
                return found
            passed = time.monotonic() - began
            if passed > self.deadlines.start_seconds:
                raise DeadlineExceeded(
                    f"a machine of {role} left the cluster, and after {self.deadlines.start_seconds:g} s "
                    f"{_missing(groups, self._groups)}",
                    role,
                    None,
                    "restart",
                )
            if passed > NOTICE_SECONDS and not noticed:
                logger.warning("waiting for a machine: %s", _missing(groups, self._groups))
                noticed = True
            time.sleep(LOOK_SECONDS)

    def _node(self, bundle: tuple[str, int]) -> str:
        group, number = bundle
        return self._nodes[group][number]

    def _used(self) -> set[str]:
        return {node for nodes in self._nodes.values() for node in nodes}

    def _gpu_bundles(self) -> dict[tuple[str, int], float]:
        """Count the GPUs of each bundle that has some, by group and number."""
        return {
            (name, bundle): group.gpus_per_node
            for name, group in self._groups.items()
            if group.gpus_per_node
            for bundle in range(group.nodes)
        }

    def warn_of_niceness(self) -> None:
        """Say where this run's processes yield to all others, as Ray lets them; no error where a node does not tell."""
        asked = {node: run_on(node, yield_no_more) for node in self._used()}
        ended, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=LOOK_AT_NODES_SECONDS)
        yielding = {}
        for node, ref in asked.items():
            with suppress(RayError):
                if ref in ended and (nicer := ray.get(ref)):
                    yielding[_address_of(node)] = nicer
        if yielding:
            shown = ", ".join(sorted(yielding)[:3]) + (" and others" if len(yielding) > 3 else "")
            logger.warning(
                "on %s the run yields to every other process (nice %d), which can slow it ten times; start Ray there "
                "with RAY_worker_niceness=0 in its environment",
                shown,
                max(yielding.values()),
            )

    def host(self, role: str, *others: str) -> str:
        """Return the address at which rank 0 meets other ranks and roles; the loopback one on one node."""
        slots = [slot for name in (role, *others) for slot in self.layout.slots[name]]
        nodes = {self.node(slot) for slot in slots}
        return LOOPBACK if len(nodes) == 1 else _address_of(self.node(slots[0]))

    def endpoint(self, role: str) -> tuple[str, int]:
        """Host and a free port on the node of a role's rank 0, for a process group of its ranks.

        The host is the loopback address where all of them are on one node. The role must be placed: call it in
        `make_arguments` (at rank 0, so that a restarted group gets a new port) or after the group is made.
        """
        first = self.node(self.layout.slots[role][0])
        # A port stays free until its group binds it, seconds later: the system may name it again to the next one.
        port = self._free_port(first, role)
        while (first, port) in self._given_ports:
            port = self._free_port(first, role)
        self._given_ports.add((first, port))
        return self.host(role), port

    def _free_port(self, node: str, role: str) -> int:
        if node == ray.get_runtime_context().get_node_id():
            return free_port("")
        ref = free_port_on(node)
        port: int = wait([ref], role=role, phase="choice of a port", seconds=self.deadlines.start_seconds)[0]
        return port

    def adopt(self, role: "ActorGroup") -> None:
        """End a role's workers when the cluster is left."""
        self._roles.append(role)

    def close(self) -> None:
        """End all workers, in order as far as they manage it within END_SECONDS."""
        ending: list[ray.ObjectRef] = []
        try:
            ending += [ref for role in self._roles for ref in role.submit_end()]
            _wait_for(ending, END_SECONDS)
        except (KeyboardInterrupt, SystemExit):
            # Somebody is in a hurry, while the job is ending already: those who have begun need a moment more.
            _wait_for(ending, HURRIED_SECONDS)
            raise
        finally:
            for role in reversed(self._roles):
                role.kill()


def _wait_for(ending: list[ray.ObjectRef], seconds: float) -> None:
    if ending:
        ray.wait(ending, num_returns=len(ending), timeout=seconds)


@contextmanager
def connect(
    cluster: ClusterConfig,
    groups: Mapping[str, GroupConfig],
    say: Say = silent,
    environment: EnvironmentConfig | None = None,
) -> Iterator[Cluster]:
    """Join or start Ray and reserve the groups; on leaving, all workers end, and a Ray that was started here too.

    Joined is, in this order: a session that this process has open, `cluster.address`, the cluster that the job was
    submitted to (RAY_ADDRESS). Otherwise a local Ray starts with what the groups ask for.

    Args:
        cluster: which Ray, and deadlines.
        groups: what to reserve, by name.
        say: takes a line for the person who watches when Ray is ready, and one as each role is.
        environment: variables that the user gives to workers; None: none.

    Raises:
        ClusterUnreachable: no Ray answers at the address.
        DoesNotFit: a local Ray cannot hold the groups.
        ResourcesUnavailable: the groups' resources did not become free within `deadlines.start_seconds`.
    """
    with ExitStack() as stack:
        found = stack.enter_context(ray_session(cluster, groups, say))
        placed = _reserve(groups, cluster.deadlines.start_seconds, stack)
        joined = Cluster(groups, cluster.deadlines, placed, say, environment)
        if found:
            joined.warn_of_niceness()
        stack.callback(joined.close)
        yield joined


def _reserve(groups: Mapping[str, GroupConfig], seconds: float, stack: ExitStack) -> dict[str, PlacementGroup]:
    placed = {}
    for name, group in groups.items():
        strategy = "STRICT_SPREAD" if group.nodes > 1 else "PACK"
        placed[name] = placement_group([bundle_of(group)] * group.nodes, strategy=strategy)
        stack.callback(remove_placement_group, placed[name])
    deadline = time.monotonic() + seconds
    notice = time.monotonic() + NOTICE_SECONDS
    waiting = list(groups)
    while waiting:
        waiting = [name for name in waiting if not placed[name].wait(min(1.0, seconds))]
        if waiting and time.monotonic() > deadline:
            raise ResourcesUnavailable(f"after {seconds:g} s {_missing(waiting, groups)}")
        if waiting and time.monotonic() > notice:
            logger.warning("waiting for resources: %s", _missing(waiting, groups))
            notice = deadline + 1
    return placed


def bundle_of(group: GroupConfig) -> dict[str, float]:
    """Return the Ray resources that a group takes of each of its nodes."""
    bundle = {"CPU": float(group.cpus_per_node)}
    if group.gpus_per_node:
        bundle["GPU"] = float(group.gpus_per_node)
    return bundle


def _missing(waiting: list[str], groups: Mapping[str, GroupConfig]) -> str:
    """Say what the groups that wait ask for, beside what the cluster has."""
    asked = []
    for name in waiting:
        group = groups[name]
        spread = " on different nodes" if group.nodes > 1 else ""
        asked.append(f"group {name!r} asks {group.nodes} x ({_listed(bundle_of(group))}){spread}")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have = "; ".join(_listed(node) for node in nodes)
    return (
        f"the cluster has no room: {'; '.join(asked)}; "
        f"free now: {_listed(ray.available_resources())}; the {len(nodes)} nodes have in all: {have}"
    )


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def _nodes_of(group: PlacementGroup) -> list[str]:
    """List each bundle's node; one without a node at present has an empty name, or that of the node it had."""
    by_bundle = placement_group_table(group)["bundles_to_node_id"]
    return [by_bundle[index] for index in sorted(by_bundle)]


def _lives(node: str, seconds: float) -> bool:
    """Tell whether a node lives: one that Ray has not missed yet is asked, until it answers or Ray misses it.

    Ray misses a machine whose link was cut after 63 to 65 s, one whose processes were killed after about 13.

    Args: node, Ray's id of it; seconds, after which one of which neither is true counts as alive.
    """
    if node == ray.get_runtime_context().get_node_id():
        return True
    deadline = time.monotonic() + seconds
    asked: ray.ObjectRef | None = None
    while time.monotonic() < deadline:
        if node not in _alive():
            return False
        asked = asked or run_on(node, _answer)
        if ray.wait([asked], timeout=LOOK_SECONDS)[0]:
            try:
                return bool(ray.get(asked, timeout=LOOK_SECONDS))
            except RayError:
                asked = None
                time.sleep(LOOK_SECONDS)
    return True  # and too busy to answer: what is started there will tell


def _answer() -> bool:
    return True


def _alive() -> set[str]:
    """Return the ids of the nodes that live, as far as Ray knows."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _probe_devices(
    bundles: Mapping[tuple[str, int], float], placed: Mapping[str, PlacementGroup], seconds: float, role: str
) -> dict[tuple[str, int], list[str]]:
    """Find the ids of the GPUs that Ray gave to each bundle, the same as long as the bundle does not move.

    Args: bundles, GPUs of each by group and number; placed, the groups; seconds, for all to answer; role, for errors.
    """
    # So that Ray leaves the node's own variable, whose order is meant.
    kept = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    refs = {
        (name, bundle): ray.remote(_visible_devices)
        .options(
            runtime_env=kept,
            num_cpus=0,
            num_gpus=gpus,
            max_retries=0,
            scheduling_strategy=PlacementGroupSchedulingStrategy(placed[name], placement_group_bundle_index=bundle),
        )
        .remote()
        for (name, bundle), gpus in bundles.items()
    }
    found = wait(list(refs.values()), role=role, phase="look for GPUs", seconds=seconds)
    return dict(zip(refs, found, strict=True))


def _visible_devices() -> list[str]:
    given = ray.get_runtime_context().get_accelerator_ids()["GPU"]
    return ordered_devices(map(str, given), os.environ.get("CUDA_VISIBLE_DEVICES", ""))


def ordered_devices(given: Iterable[str], visible: str) -> list[str]:
    """Return GPUs, which Ray gives as a set, in the order of the node's CUDA_VISIBLE_DEVICES, else by number."""
    order = visible.split(",")

    def place(device: str) -> tuple[int, int, str]:
        listed = order.index(device) if device in order else len(order)
        return listed, int(device) if device.isdecimal() else 0, device

    return sorted(given, key=place)


def _address_of(node_id: str) -> str:
    for node in ray.nodes():
        if node["NodeID"] == node_id:
            # Also of one that died: a call to who was there tells whose death it was.
            return str(node["NodeManagerAddress"])
    raise ResourcesUnavailable(f"node {node_id} left the cluster")

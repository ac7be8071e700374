"""What of a cluster kills runs, found before one starts: each check uses all nodes, and says what to do."""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from rlhf_ray.cluster.endpoint import free_port_on, run_on
from rlhf_ray.cluster.niceness import yield_no_more
from rlhf_ray.cluster.outcome import last_error, plain
from rlhf_ray.cluster.session import join_ray
from rlhf_ray.config.errors import RlhfError
from rlhf_ray.jobs.tools import node_probes
from rlhf_ray.jobs.tools.findings import Finding

PROBE_SECONDS = 120.0
"""For a node to start a process and to answer; importing torch on a slow disk takes most of it."""

FETCH_SECONDS = 10.0
"""For an answer that is there to come here."""

LISTEN_SECONDS = 20.0
CLOCK_SECONDS = 2.0
"""By which clocks may differ: tokens and certificates allow more, but logs of two nodes could not be compared."""

SHARED_MEMORY_BYTES = 2 * 2**30
SLOW_BYTES = 100e6
"""Bytes a second below which a network is that of an office, or a wrong interface."""

GIB, MB = 2**30, 1e6


def check_cluster(address: str, output: str | None) -> Iterator[Finding]:
    """Join a cluster and check its nodes, each with all others.

    Args: address, of the cluster; output, a folder that all nodes shall see.
    """
    try:
        join_ray(address)
    except RlhfError as error:
        yield Finding("error", "cluster", str(error))
        return
    try:
        nodes = {node["NodeID"]: str(node["NodeManagerAddress"]) for node in ray.nodes() if node["Alive"]}
        yield Finding("ok", "cluster", f"{address} has {len(nodes)} nodes: {_shown(list(nodes.values()))}")
        checks: list[Callable[[Mapping[str, str]], Iterator[Finding]]] = [
            check_versions,
            check_clocks,
            check_shared_memory,
            check_niceness,
            check_ports,
            check_all_reduce,
            check_peers,
        ]
        for check in checks:
            yield from check(nodes)
        if output is not None:
            yield from check_folder(nodes, output)
    finally:
        ray.shutdown()


def check_versions(nodes: Mapping[str, str]) -> Iterator[Finding]:
    """Check that all nodes have this machine's Python and packages."""
    own = node_probes.versions()
    failed, answers = _ask(nodes, node_probes.versions)
    for address, reason in failed.items():
        text = f"{address}: {reason}; install rlhf_ray there, and run `ray start` from that environment"
        yield Finding("error", "versions", text)
    wrong: dict[str, list[str]] = {}
    for node, found in answers.items():
        unlike = [f"{name} {found.get(name, 'missing')}" for name in own if found.get(name) != own[name]]
        if unlike:
            wrong.setdefault(", ".join(unlike), []).append(nodes[node])
    for theirs, addresses in wrong.items():
        here = ", ".join(f"{name} {own[name]}" for name in own if name in theirs)
        text = f"{_shown(addresses)}: {theirs}, but here {here}; use one image, or one environment, everywhere"
        yield Finding("error", "versions", text)
    if not wrong and not failed:
        yield Finding("ok", "versions", f"the same {len(own)} on all nodes")


def check_clocks(nodes: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the nodes' clocks agree with this machine's."""
    off = {}
    for node, address in nodes.items():
        _ask({node: address}, node_probes.clock)  # a process is there then, so that the answer takes no time
        began = time.time()
        _, answers = _ask({node: address}, node_probes.clock)
        ended = time.time()
        for there in answers.values():
            off[address] = max(began - there, there - ended, 0.0)
    wrong = {address: seconds for address, seconds in off.items() if seconds > CLOCK_SECONDS}
    if wrong:
        shown = ", ".join(f"{address} {seconds:.0f} s" for address, seconds in wrong.items())
        yield Finding("warning", "clocks", f"off by {shown}; let chrony or ntpd set them")
    elif off:
        yield Finding("ok", "clocks", f"within {max(off.values()):.1f} s of this machine's")


def check_shared_memory(nodes: Mapping[str, str]) -> Iterator[Finding]:
    """Check that /dev/shm of each node is large enough for Ray's objects and DeepSpeed's ops."""
    _, answers = _ask(nodes, node_probes.shared_memory)
    small = [nodes[node] for node, free in answers.items() if free < SHARED_MEMORY_BYTES]
    if small:
        text = f"under {SHARED_MEMORY_BYTES / GIB:g} GiB free in /dev/shm of {_shown(small)}; in containers, start "
        text += "them with --shm-size=8g, pods with an emptyDir of medium Memory there"
        yield Finding("warning", "shared memory", text)
    elif answers:
        yield Finding("ok", "shared memory", f"{min(answers.values()) / GIB:.1f} GiB free or more in /dev/shm")


def check_niceness(nodes: Mapping[str, str]) -> Iterator[Finding]:
    """Check that a run's processes do not yield to all others of their machines."""
    _, answers = _ask(nodes, yield_no_more)
    yielding = [nodes[node] for node, nicer in answers.items() if nicer]
    if yielding:
        text = f"workers on {_shown(yielding)} yield to every other process, which can slow a run ten times; "
        text += "start Ray there with RAY_worker_niceness=0 in its environment"
        yield Finding("warning", "niceness", text)


def check_ports(nodes: Mapping[str, str]) -> Iterator[Finding]:
    """Check that each node takes connections of each other one, at ports like those at which roles meet."""
    if len(nodes) < 2:
        return
    try:
        ports = dict(zip(nodes, ray.get([free_port_on(node) for node in nodes], timeout=PROBE_SECONDS), strict=True))
    except (RayError, GetTimeoutError) as error:
        yield Finding("error", "ports", f"no free port was found: {_reason(error)}")
        return
    for node, port in ports.items():
        run_on(node, node_probes.listen, port, LISTEN_SECONDS)
    places = [(nodes[node], port) for node, port in ports.items()]
    _, answers = _ask(nodes, node_probes.unreachable, places)
    blocked = [f"from {nodes[node]} to {place}" for node, failed in answers.items() for place in failed]
    if blocked:
        text = f"{_shown(blocked)}; open ports 20000 to 65535 between the nodes, and give `ray start` on each the "
        text += "address by which the others reach it: --node-ip-address"
        yield Finding("error", "ports", text)
    elif answers:
        yield Finding("ok", "ports", "each node reaches each other one")


def check_all_reduce(nodes: Mapping[str, str]) -> Iterator[Finding]:
    """Let one process on each node sum an array with all others, over NCCL where all have GPUs, and measure it."""
    if len(nodes) < 2:
        return
    having = {node["NodeID"] for node in ray.nodes() if node["Resources"].get("GPU", 0) >= 1}
    backend = "nccl" if having.issuperset(nodes) else "gloo"
    try:
        port = ray.get(free_port_on(next(iter(nodes))), timeout=PROBE_SECONDS)
        host = next(iter(nodes.values()))
        refs = [
            run_on(node, node_probes.all_reduce, host, port, rank, len(nodes), backend, gpus=int(backend == "nccl"))
            for rank, node in enumerate(nodes)
        ]
        slowest = min(ray.get(refs, timeout=PROBE_SECONDS + node_probes.MEET_SECONDS))
    except (RayError, GetTimeoutError) as error:
        variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
        text = f"{backend} between {len(nodes)} nodes failed: {_reason(error)}; name the network interface by which "
        text += f"the nodes reach each other in the config, environment.all.{variable}"
        yield Finding("error", "all-reduce", text)
        return
    text = f"{slowest / MB:,.0f} MB/s on the bus of {len(nodes)} nodes, over {backend}"
    if slowest < SLOW_BYTES:
        text += "; if the network is faster, name its interface in environment.all (NCCL_SOCKET_IFNAME, "
        yield Finding("warning", "all-reduce", text + "GLOO_SOCKET_IFNAME), or its adapters (NCCL_IB_HCA)")
    else:
        yield Finding("ok", "all-reduce", text)


def check_peers(nodes: Mapping[str, str]) -> Iterator[Finding]:
    """Check that GPUs of one node read each other's memory, without which they talk through the machine's."""
    _, answers = _ask(nodes, node_probes.peers)
    blind = {nodes[node]: pairs for node, (_, pairs) in answers.items() if pairs}
    for address, pairs in blind.items():
        text = f"{address}: no peer access between {_shown(pairs)}; NCCL works all the same, but slower: see "
        yield Finding("warning", "GPUs", text + "`nvidia-smi topo -p2p r`, and turn IOMMU (ACS) off where it may be")
    counts = Counter(count for count, _ in answers.values())
    if not blind and any(counts):
        yield Finding("ok", "GPUs", "peer access between all GPUs of each node")


def check_folder(nodes: Mapping[str, str], folder: str) -> Iterator[Finding]:
    """Check that what one node writes into a folder is what all others read there."""
    word = secrets.token_hex(4)
    marks = {node: f".doctor_{word}_{number}" for number, node in enumerate(nodes)}
    refs = {node: run_on(node, node_probes.write_mark, folder, mark) for node, mark in marks.items()}
    failed = {}
    for node, ref in refs.items():
        try:
            if why := ray.get(ref, timeout=PROBE_SECONDS):
                failed[nodes[node]] = why
        except (RayError, GetTimeoutError) as error:
            failed[nodes[node]] = _reason(error)
    try:
        if failed:
            shown = ", ".join(f"{address} ({why})" for address, why in failed.items())
            yield Finding("error", "run folder", f"{folder} cannot be written on {shown}; mount it there, writable")
            return
        _, answers = _ask(nodes, node_probes.read_marks, folder, list(marks.values()))
        writers = {mark: nodes[node] for node, mark in marks.items()}
        unseen = [f"{nodes[node]} that of {writers[mark]}" for node, missing in answers.items() for mark in missing]
        if unseen:
            text = f"{folder} is not one folder: {_shown(unseen)} is not seen; give storage that all nodes share"
            yield Finding("error", "run folder", text)
        else:
            yield Finding("ok", "run folder", f"{folder}: what each node writes, all read")
    finally:
        for node, mark in marks.items():
            run_on(node, node_probes.remove_mark, folder, mark)


def _ask(
    nodes: Mapping[str, str], function: Callable[..., Any], *arguments: Any
) -> tuple[dict[str, str], dict[str, Any]]:
    """Call a function on all nodes at once: reasons of those that failed, by address, and answers, by node."""
    refs = {node: run_on(node, function, *arguments) for node in nodes}
    ended, _ = ray.wait(list(refs.values()), num_returns=len(refs), timeout=PROBE_SECONDS)
    failed, answers = {}, {}
    for node, ref in refs.items():
        try:
            answers[node] = ray.get(ref, timeout=FETCH_SECONDS if ref in ended else 0)
        except (RayError, GetTimeoutError) as error:
            failed[nodes[node]] = _reason(error)
    return failed, answers


def _reason(error: Exception) -> str:
    if isinstance(error, GetTimeoutError):
        return f"no answer within {PROBE_SECONDS:g} s"
    return last_error(plain(str(error))).splitlines()[-1].strip()


def _shown(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

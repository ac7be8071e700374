"""A machine that dies: its workers come up on another one, and meet there. Nodes are Ray's, all on this machine."""

import logging
import sys
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.config.placement import ClusterConfig, DeadlineConfig, GroupConfig, PlacementConfig

# Workers cannot import this module, which pytest found by its path.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

pytestmark = pytest.mark.chaos

SMALL = {"object_store_memory": 80 * 2**20}


class Worker:
    """A role that knows where it is and meets its peers."""

    def __init__(self, rank: int, master: tuple[str, int]) -> None:
        self.rank, self.master = rank, master

    def node(self) -> str:
        return ray.get_runtime_context().get_node_id()

    def all_reduce(self) -> float:
        import torch
        import torch.distributed as dist

        host, port = self.master
        dist.init_process_group("gloo", f"tcp://{host}:{port}", rank=self.rank, world_size=2)
        total = torch.tensor(float(self.rank + 1))
        dist.all_reduce(total)
        dist.destroy_process_group()
        return total.item()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head for the driver, and two machines of two CPUs."""
    ray.shutdown()  # the session that other tests share: this one needs machines that can be lost
    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    for _ in range(2):
        made.add_node(num_cpus=2, **SMALL)
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def cluster(nodes: Nodes) -> Iterator[Cluster]:
    deadlines = DeadlineConfig(start_seconds=30, call_seconds=60)
    with connect(ClusterConfig(deadlines=deadlines), {"main": GroupConfig(nodes=2, cpus_per_node=2)}) as joined:
        yield joined


def trainers(cluster: Cluster) -> ActorGroup:
    """Two ranks, each with a machine of its own."""
    masters: list[tuple[str, int]] = []

    def arguments(rank: int) -> dict[str, object]:
        if rank == 0:
            masters.append(cluster.endpoint("policy"))
        return {"rank": rank, "master": masters[-1]}

    placement = PlacementConfig(workers=2, cpus_per_worker=2)
    group = ActorGroup(cluster, Worker, placement, "policy", arguments, max_restarts=3)
    group.ready()
    return group


@pytest.mark.parametrize("rank", [0, 1])
def test_its_workers_come_up_on_another_one_and_meet(nodes: Nodes, cluster: Cluster, rank: int) -> None:
    group = trainers(cluster)
    before = group.call("node")
    assert [cluster.node(slot) for slot in group.slots] == before
    remove(nodes, before[rank])
    with pytest.raises(RoleDied, match=f"policy rank {rank} died"):
        group.call("all_reduce")
    nodes.add_node(num_cpus=2, **SMALL)
    group.restart_all(rank)
    assert group._supervision.failures(rank) == 1, "one death of a machine is one failure, also while Ray misses it"
    after = group.call("node")
    assert after[rank] != before[rank]
    assert after[1 - rank] == before[1 - rank]
    assert [cluster.node(slot) for slot in group.slots] == after
    assert group.call("all_reduce") == [3.0, 3.0]


def test_where_none_takes_its_place_only_those_who_were_there_wait(
    nodes: Nodes, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = trainers(cluster)
    before = group.call("node")
    remove(nodes, before[1])
    with pytest.raises(RoleDied, match="policy rank 1 died"):
        group.call("all_reduce")
    monkeypatch.setattr(cluster, "deadlines", DeadlineConfig(start_seconds=20))
    message = r"^a machine of policy left the cluster, and after 20 s .* group 'main' asks 2 x \(2 CPU"
    with pytest.raises(DeadlineExceeded, match=message) as raised:
        group.restart(1)
    assert raised.value.role == "policy"
    group.restart(0)
    assert group.call_one(0, "node") == before[0]


def remove(nodes: Nodes, node_id: str) -> None:
    """Kill all processes of a node."""
    nodes.remove_node(next(node for node in nodes.worker_nodes if node.node_id == node_id), allow_graceful=False)

"""Workers on real GPUs: each computes on the devices that the placement chose, and on no other."""

from collections.abc import Iterator

import pytest

from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.config.placement import ClusterConfig, GroupConfig, PlacementConfig

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    groups = {"main": GroupConfig(gpus_per_node=1, cpus_per_node=4)}
    with connect(ClusterConfig(), groups) as joined:
        yield joined


def devices(cluster: Cluster, name: str, placement: PlacementConfig) -> list[list[str]]:
    class Worker:
        """Defined here so that it travels by value: workers cannot import test modules."""

        def devices(self) -> list[str]:
            import torch

            torch.ones(1, device="cuda") if torch.cuda.device_count() else None
            return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]

        def wake(self) -> None: ...

        def sleep(self) -> None: ...

    group = ActorGroup(cluster, Worker, placement, name, lambda rank: {})
    found = group.call("devices")
    group.turn("sleep")
    return found


def test_roles_share_a_gpu_in_time_and_cpu_roles_see_none(cluster: Cluster):
    policy = devices(cluster, "policy", PlacementConfig(gpus_per_worker=1))
    engine = devices(cluster, "rollout", PlacementConfig(gpus_per_worker=1))
    halves = devices(cluster, "reward", PlacementConfig(workers=2, gpus_per_worker=0.5))
    assert len(policy[0]) == 1
    assert policy == engine == [halves[0]] == [halves[1]]
    assert devices(cluster, "function", PlacementConfig()) == [[]]
    assert cluster.layout.sharing("policy") == {"rollout", "reward"}
    assert ("rollout", "sleep") in cluster.turns
    assert ("function", "sleep") not in cluster.turns

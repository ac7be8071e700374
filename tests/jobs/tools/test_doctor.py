"""`rlhf doctor` finds what kills runs on a cluster, each with what to do. The nodes are Ray's, all on this machine."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster as Nodes

from rlhf_ray import cli
from rlhf_ray.jobs.tools import cluster_checks, doctor, node_probes
from rlhf_ray.jobs.tools.findings import Finding
from tests.tracking.wandb_service import wandb_service

KEY = "0123456789abcdef0123456789abcdef01234567"


OWN, VERSIONS = os.getpid(), node_probes.versions


def found(findings: Iterator[Finding]) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.level, finding.text) for finding in findings}


@pytest.fixture(scope="module")
def nodes() -> Iterator[str]:
    """Two machines; the address of the first."""
    ray.shutdown()  # the session that other tests share
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Nodes(initialize_head=True, head_node_args=small)
    made.add_node(**small)
    try:
        yield made.address
    finally:
        ray.shutdown()
        made.shutdown()


@pytest.fixture
def joined(nodes: str) -> Iterator[dict[str, str]]:
    """Address of each node, by its id, in a session of this process."""
    ray.init(address=nodes, log_to_driver=False, logging_level=logging.ERROR)
    yield {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    ray.shutdown()


@pytest.mark.slow  # a Ray of two nodes of its own, and processes on both: half a minute
class TestCluster:
    def test_a_cluster_that_is_well(self, nodes: str, tmp_path: Path) -> None:
        report = found(cluster_checks.check_cluster(nodes, str(tmp_path / "runs")))
        assert {level for level, _ in report.values()} == {"ok"}, report
        assert {*report} == {"cluster", "versions", "clocks", "shared memory", "ports", "all-reduce", "run folder"}
        assert "MB/s on the bus of 2 nodes, over gloo" in report["all-reduce"][1]
        assert not list((tmp_path / "runs").iterdir())

    @pytest.mark.parametrize(
        ("check", "probe", "stand_in", "level", "says"),
        [
            (
                cluster_checks.check_versions,
                "versions",
                lambda own=OWN: VERSIONS() if os.getpid() == own else {"python": "3.9.1"},
                "error",
                "python 3.9.1, rlhf_ray missing",
            ),
            (cluster_checks.check_clocks, "clock", lambda: 9e9, "warning", "let chrony or ntpd set them"),
            (cluster_checks.check_shared_memory, "shared_memory", lambda: 64e6, "warning", "--shm-size=8g"),
            (
                cluster_checks.check_ports,
                "unreachable",
                lambda places: ["a:1 (timed out)"],
                "error",
                "open ports 20000",
            ),
            (cluster_checks.check_all_reduce, "all_reduce", lambda *_: 1e6, "warning", "1 MB/s on the bus"),
            (cluster_checks.check_all_reduce, "all_reduce", lambda *_: 1 / 0, "error", "GLOO_SOCKET_IFNAME"),
            (cluster_checks.check_peers, "peers", lambda: (2, ["0-1"]), "warning", "no peer access between 0-1"),
        ],
        ids=["versions", "clocks", "shared memory", "ports", "slow network", "no network", "peers"],
    )
    def test_what_is_wrong_on_nodes_is_said_with_its_remedy(
        self,
        joined: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
        check: Callable[..., Iterator[Finding]],
        probe: str,
        stand_in: Callable[..., Any],
        level: str,
        says: str,
    ) -> None:
        monkeypatch.setattr(node_probes, probe, stand_in)
        [finding] = check(joined)
        assert finding.level == level
        assert says in finding.text, finding.text

    def test_a_folder_that_is_not_shared(self, joined: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(node_probes, "read_marks", lambda folder, names: names[:1])
        [finding] = cluster_checks.check_folder(joined, "/tmp")
        assert finding.level == "error"
        assert "/tmp is not one folder: " in finding.text
        [finding] = cluster_checks.check_folder(joined, "/proc/nothing")
        assert "cannot be written on" in finding.text


def test_an_address_where_nobody_listens_is_an_error_and_no_trace(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_probe", lambda script: (0, "torch None 0"))
    assert cli.main(["doctor", "--address", "127.0.0.1:9"]) == 1
    assert "ERROR    cluster: cluster.address 127.0.0.1:9: no Ray answers there" in capsys.readouterr().out
    assert cli.main(["doctor", "--output", "/tmp"]) == 2
    assert "give its address too" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("variables", "level", "says"),
    [
        ({}, "ok", "offline, no WANDB_API_KEY"),
        ({"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}, "ok", "offline, as WANDB_MODE says"),
        # These two import wandb in a process of its own.
        pytest.param({"WANDB_API_KEY": KEY}, "ok", "the key is that of me", marks=pytest.mark.slow),
        pytest.param(
            {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
            "warning",
            "WANDB_API_KEY is set, but the service said: ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_wandb_says_where_metrics_go(
    variables: dict[str, str], level: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    with wandb_service() as service:
        for name, value in ({"WANDB_BASE_URL": service.address} | variables).items():
            monkeypatch.setenv(name, value)
        [finding] = doctor.check_wandb()
    assert (finding.level, finding.text.startswith(says)) == (level, True), finding.text
    assert KEY not in finding.text


def test_nodes_read_each_others_marks(tmp_path: Path) -> None:
    assert node_probes.write_mark(str(tmp_path / "a"), "mark") == ""
    (tmp_path / "a" / "torn").write_text("to")
    assert node_probes.read_marks(str(tmp_path / "a"), ["mark", "torn", "none"]) == ["torn", "none"]
    node_probes.remove_mark(str(tmp_path / "a"), "mark")
    assert os.listdir(tmp_path / "a") == ["torn"]
    assert node_probes.read_marks(str(tmp_path / "b"), ["mark"]) == ["mark"]
    (tmp_path / "file").touch()
    assert node_probes.write_mark(str(tmp_path / "file"), "mark")

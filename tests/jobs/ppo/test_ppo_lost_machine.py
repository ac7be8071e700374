"""A machine with all roles of a PPO run dies; another one takes its place. Nodes are Ray's, all on this machine."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster as Nodes

from tests.jobs.ppo_runs import metrics_of, saved_tensors, untimed, write_config

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1200)]

STORE = {"object_store_memory": 100 * 2**20}
DIES_AFTER = 6
"""Steps; the newest checkpoint is of step 4 then."""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head for the driver alone, and one machine for the roles."""
    made = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, **STORE})
    made.add_node(num_cpus=2, **STORE)
    try:
        yield made
    finally:
        made.shutdown()


def test_the_run_goes_on_elsewhere_and_learns_the_same(
    nodes: Nodes, learned: Path, ppo_settings: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """In deterministic mode, bit for bit."""
    run = tmp_path / "run"
    cluster = {"address": nodes.address, "deadlines": {"call_seconds": 120, "transfer_seconds": 60}}
    config = write_config(tmp_path / "ppo.yaml", ppo_settings(run, cluster=cluster))
    command = [sys.executable, "-m", "rlhf_ray.cli", "ppo", str(config)]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as job:
        try:
            while job.poll() is None and steps_of(run) < DIES_AFTER:
                time.sleep(0.2)
            assert job.poll() is None, (tmp_path / "log").read_text()[-5000:]
            [machine] = nodes.worker_nodes
            nodes.remove_node(machine, allow_graceful=False)
            nodes.add_node(num_cpus=2, **STORE)
            assert job.wait(900) == 0, (tmp_path / "log").read_text()[-5000:]
        finally:
            job.kill()
    assert "a machine of policy left the cluster" in (tmp_path / "log").read_text()
    assert [untimed(row) for row in metrics_of(run)] == [untimed(row) for row in metrics_of(learned)]
    for role in ("policy", "critic"):
        expected, found = (saved_tensors(folder, 10, role) for folder in (learned, run))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def steps_of(run: Path) -> int:
    """Steps that a run has written so far; a line may be half there."""
    file = run / "metrics.jsonl"
    lines = file.read_bytes().split(b"\n")[:-1] if file.exists() else []
    return max((json.loads(line)["step"] for line in lines), default=0)

"""A head that is gone ends its driver within seconds, with a line that says what to do; a stop of the group saves."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.cluster import head_watch
from rlhf_ray.models.tiny import build_tiny
from tests.conftest import TEXTS
from tests.jobs.ppo_runs import metrics_of, write_config, write_rows
from tests.jobs.tools.ray_head import Head

DRIVER = """
import sys, time
from rlhf_ray.cluster.connect import connect
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.config.placement import ClusterConfig, GroupConfig, PlacementConfig

class Worker:
    def work(self):
        import time
        time.sleep(600)

with connect(ClusterConfig(address=sys.argv[1]), {"main": GroupConfig(cpus_per_node=1)}) as cluster:
    group = ActorGroup(cluster, Worker, PlacementConfig(), "worker", lambda rank: {})
    group.ready()
    print("working", flush=True)
    group.call("work")
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(head_watch, "GONE_SECONDS", 0.1)


def test_who_takes_no_connection_is_gone(quick: None) -> None:
    errors: list[OSError] = []
    with socket.socket() as head:
        head.bind(("127.0.0.1", 0))
        head.listen()
        left = threading.Event()
        watch = threading.Thread(target=head_watch.watch_head, args=(head.getsockname(), left, errors.append))
        watch.start()
        time.sleep(0.4)
        assert not errors
    watch.join(10)
    assert not watch.is_alive()
    assert "refused" in str(errors[0])


def test_who_has_left_is_told_nothing(quick: None) -> None:
    errors: list[OSError] = []
    left = threading.Event()
    left.set()
    head_watch.watch_head(("127.0.0.1", 9), left, errors.append)
    assert not errors


@pytest.fixture
def head() -> Iterator[Head]:
    # Sockets below the folder must have short names, which pytest's own folders do not give.
    folder = Path("/tmp") / f"lost{os.getpid()}"
    folder.mkdir()
    started = Head(folder)
    yield started
    started.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.chaos
def test_a_driver_whose_head_dies_ends_with_one_line(head: Head) -> None:
    deadline = time.monotonic() + 200
    while True:
        command = [sys.executable, "-c", DRIVER, head.gcs]
        with subprocess.Popen(command, env=head.environment, text=True, stdout=-1, stderr=-1) as driver:
            assert driver.stdout is not None
            assert driver.stderr is not None
            try:
                if driver.stdout.readline() != "working\n":  # the head is not up yet
                    assert time.monotonic() < deadline, driver.stderr.read()
                    continue
                head.kill()
                began = time.monotonic()
                assert driver.wait(50) == 1
                assert time.monotonic() - began < 45, "Ray itself waits for a minute"
            finally:
                driver.kill()
            lines = [line for line in driver.stderr.read().splitlines() if line.startswith("rlhf: ")]
            break
    [line] = lines
    port = head.gcs.partition(":")[2]
    assert re.match(rf"rlhf: Ray's head at [^ ]+:{port} is gone \(.*refused\).* start the cluster again", line), line


@pytest.mark.chaos
def test_a_stop_of_the_whole_process_group_lets_the_job_save(tmp_path: Path) -> None:
    """As a scheduler, or `timeout`, stops it: Ray's own processes outlive the signal."""
    rows = [{"prompt": f"The {thing}", "completion": " was fine."} for thing in ("film", "book", "box", "song")]
    build_tiny(tmp_path / "model", TEXTS, hidden=32, heads=1, vocab_size=300)
    settings = {
        "output": str(tmp_path / "run"),
        "model": {"path": str(tmp_path / "model"), "dtype": "float32"},
        "data": {"path": str(write_rows(tmp_path / "rows.jsonl", rows))},
        "epochs": 100_000,
        "batch_size": 4,
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    command = [sys.executable, "-m", "rlhf_ray.cli", "sft", str(write_config(tmp_path / "sft.yaml", settings))]
    log = tmp_path / "log"
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True) as job:
        try:
            deadline = time.monotonic() + 200
            while not (tmp_path / "run" / "metrics.jsonl").exists() or not metrics_of(tmp_path / "run"):
                assert job.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
            os.killpg(job.pid, signal.SIGTERM)
            began = time.monotonic()
            assert job.wait(120) == 0, log.read_text()
            assert time.monotonic() - began < 60
        finally:
            job.kill()
    assert "; the same command goes on from there" in log.read_text()
    assert list((tmp_path / "run" / "checkpoints").glob("step_*"))

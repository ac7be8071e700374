"""A run that is killed and resumed is one run in wandb, offline and online: each step once, in order, none missing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rlhf_ray.tracking.wandb_files import history
from tests.tracking.wandb_service import Service, wandb_service

pytestmark = pytest.mark.chaos

RUN_ID, KEY = "0a1b2c3d", "0123456789abcdef0123456789abcdef01234567"

PART = """
import sys, time
from pathlib import Path
from rlhf_ray.config.run import TrackingConfig
from rlhf_ray.tracking.tracker import Tracker
from rlhf_ray.tracking.wandb_files import last_step

folder, mode, run_id, first, last, waits = *sys.argv[1:4], *map(int, sys.argv[4:])
tracking = TrackingConfig(wandb=mode, tensorboard=False)
tracker = Tracker.open(Path(folder), tracking, {}, run_id if first else None, total_steps=10)
if first:
    tracker.truncate_after(first - 1)
for step in range(first, last + 1):
    if step % 3 == 0:
        tracker.log(step, {"eval_score": float(step)})
    tracker.log(step, {"reward": float(step), "start": float(first)})
    if mode == "offline":  # online a table waits for more of the service than stands in for it here
        tracker.samples(step, [{"prompt": "p", "response": "r", "rewards": {"a": 1.0}}])
    # Before the last one wandb has time to start and to write; a kill takes the last one from it.
    while waits and step == last - 1 and last_step(Path(folder), run_id) < step:
        time.sleep(0.1)
print("made", flush=True)
if waits:
    time.sleep(600)
tracker.close()
"""


def start(folder: Path, mode: str, service: Service, first: int, last: int, waits: int) -> subprocess.Popen[str]:
    environment = os.environ | {"WANDB_BASE_URL": service.address, "WANDB_API_KEY": KEY, "WANDB_ENTITY": "me"}
    script = PART if first else f"import secrets; secrets.token_hex = lambda _: {RUN_ID!r}\n{PART}"
    command = [sys.executable, "-c", script, str(folder), mode, RUN_ID, *map(str, (first, last, waits))]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True)


def make(folder: Path, mode: str, service: Service) -> None:
    """Steps 0 to 7, killed with all its processes; then, from a checkpoint of step 5 or 7, on to step 9."""
    began = time.monotonic()
    killed = start(folder, mode, service, 0, 7, waits=1)
    assert killed.stdout is not None
    while (line := killed.stdout.readline()) != "made\n":
        assert line, "it ended by itself"
    assert time.monotonic() - began < 60
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()


def go_on(folder: Path, mode: str, service: Service, after: int) -> None:
    resumed = start(folder, mode, service, after + 1, 9, waits=0)
    output, _ = resumed.communicate(timeout=120)
    assert resumed.returncode == 0
    assert "warning" not in output


@pytest.mark.parametrize("after", [5, 7])
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_each_step_is_there_once(mode: str, after: int, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    with wandb_service() as service:
        make(folder, mode, service)
        held = [row["step"] for row in history(folder, RUN_ID)]
        assert held[:7] == list(range(7)), "the file has each step soon after it was made"
        go_on(folder, mode, service, after)
        if mode == "offline":
            assert not service.lines
            steps = [row["step"] for row in history(folder, RUN_ID)]
            assert steps == list(range(10))
            environment = os.environ | {"WANDB_BASE_URL": service.address, "WANDB_API_KEY": KEY}
            command = [str(Path(sys.executable).with_name("wandb")), "sync", "--yes"]
            subprocess.run(command, cwd=folder, env=environment, check=True, timeout=120)
        assert service.names == {RUN_ID}
        rows = service.rows
    assert [row["step"] for row in rows] == list(range(10))
    assert [row["reward"] for row in rows] == [float(step) for step in range(10)]
    assert {row["start"] for row in rows} == {0.0, after + 1}
    assert [row["step"] for row in rows if "eval_score" in row] == [0, 3, 6, 9]
    own = [row["_step"] for row in rows]
    assert own == sorted(set(own)), json.dumps(rows)

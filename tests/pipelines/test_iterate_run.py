"""`rlhf iterate` on the real engines, killed in the middle of PPO."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.models.tiny import build_tiny
from tests.jobs.conftest import TEXTS
from tests.jobs.ppo_runs import write_config
from tests.pipelines.people import rank_all


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_people_between_the_stages(
    iteration: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What people say about the policy's own answers is what the reward model learns, and PPO after it."""
    build_tiny(Path("start"), TEXTS, hidden=64, layers=2, heads=2, vocab_size=300)
    config = str(write_config(Path("iterate.yaml"), iteration | {"rounds": 1, "labels": {"kind": "people"}}))
    assert cli.main(["iterate", config]) == 3
    answers = Path("rounds/round_00/answers.jsonl").read_bytes()
    page = "rounds/round_00/label.yaml"
    assert f"rlhf label {page}" in capfd.readouterr().err
    assert rank_all(page, lambda text: (len(text), text), monkeypatch) == 3
    assert cli.main(["label", page, "--export", "rounds/round_00/labels.jsonl"]) == 0
    assert cli.main(["iterate", config]) == 0
    assert Path("rounds/round_00/answers.jsonl").read_bytes() == answers, "the policy is asked once"
    rows = [json.loads(line) for line in Path("rounds/round_00/preferences.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for row in rows:
        best = row["responses"][row["ranks"].index(0)]
        assert len(best) == max(map(len, row["responses"]))
    [figures] = json.loads(Path("rounds/rounds.json").read_text())
    assert figures["rankings"] == 3
    assert {"reward", "oracle", "kl", "win_rate/oracle"} <= figures.keys()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_iteration_goes_on_where_it_was(iteration: dict[str, Any]) -> None:
    build_tiny(Path("start"), TEXTS, hidden=64, layers=2, heads=2, vocab_size=300)
    ppo = yaml.safe_load(Path("ppo.yaml").read_text())
    write_config(Path("ppo.yaml"), ppo | {"steps": 3})
    config = write_config(Path("iterate.yaml"), iteration | {"rounds": 1})
    command = [sys.executable, "-m", "rlhf_ray.cli", "iterate", str(config)]
    first = subprocess.Popen(command)
    checkpoint = Path("rounds/round_00/ppo/checkpoints/step_1/manifest.json")
    while first.poll() is None and not list(checkpoint.parent.parent.glob("step_*/manifest.json")):
        time.sleep(0.1)
    assert first.poll() is None, "it was over before it could be killed"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    made = {name: Path(f"rounds/round_00/{name}").stat().st_mtime_ns for name in ("answers.jsonl", "reward/final")}
    time.sleep(1)
    subprocess.run(command, check=True)
    for name, moment in made.items():
        assert Path(f"rounds/round_00/{name}").stat().st_mtime_ns == moment, f"{name} was made again"
    steps = [json.loads(line)["step"] for line in Path("rounds/round_00/ppo/metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == [1, 2, 3]
    [figures] = json.loads(Path("rounds/rounds.json").read_text())
    assert {"reward", "oracle", "kl", "win_rate/oracle"} <= figures.keys()

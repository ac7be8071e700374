"""Runs that fail in their midst, by a reward function, a full disk or a small cluster: one clear message, code 1."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.jobs.bad_runs import Settings, fails, largest_file
from tests.jobs.ppo_runs import write_rows

FUNCTIONS = """
import os, time

calls = 0

def third_batch(completions):
    global calls
    calls += 1
    return calls == 3

def raises(prompts, completions, **columns):
    if third_batch(completions):
        raise KeyError("no such word")
    return [1.0 for _ in completions]

def hangs(prompts, completions, **columns):
    if third_batch(completions):
        time.sleep(600)
    return [1.0 for _ in completions]

def miscounts(prompts, completions, **columns):
    return [1.0 for _ in completions][third_batch(completions):]

def dies(prompts, completions, **columns):
    # A process that takes its place is asked once more, and dies of the same batch.
    # It knows by the date of this file, since nothing else may be left behind.
    if os.stat(__file__).st_mtime == 0 or third_batch(completions):
        os.utime(__file__, (0, 0))
        os._exit(3)
    return [1.0 for _ in completions]
"""
IN_THE_MIDDLE = {
    "raises": "judge.py:13: KeyError: 'no such word'",
    "hangs": "judge.py:hangs did not return within timeout_seconds 1",
    "miscounts": "judge.py:miscounts returned 3 scores for 4 completions",
    "dies": "judge.py:dies: its process ended with code 3",
}


@pytest.mark.parametrize("case", IN_THE_MIDDLE)
@pytest.mark.usefixtures("roles_here")
def test_reward_functions_that_fail_in_the_middle(
    case: str, settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(FUNCTIONS)
    source = {"name": "judge", "kind": "function", "function": f"{tmp_path}/judge.py:{case}", "timeout_seconds": 1}
    message = fails("score", settings_of("score"), {"rewards": [source]}, tmp_path, capsys, code=1)
    assert IN_THE_MIDDLE[case] in message
    assert "reward judge: scoring failed for 4 of 12 samples, more than its failed_scores 0.1" in message


@pytest.mark.usefixtures("roles_here")
def test_no_space_in_the_middle(
    settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "judge.py").write_text(FUNCTIONS)
    rows = [{"prompt": "p" * 500, "completion": "c"} for _ in range(200)]
    settings = settings_of("score") | {"data": {"path": str(write_rows(tmp_path / "many.jsonl", rows))}}
    source = {"name": "judge", "kind": "function", "function": f"{tmp_path}/judge.py:dies", "failed_scores": 1}
    with largest_file(40_000):
        message = fails("score", settings, {"rewards": [source]}, tmp_path, capsys, code=1)
    assert "rows.jsonl: could not be written: the storage is full" in message


@pytest.mark.usefixtures("ray_session")
def test_a_cluster_that_is_too_small(
    settings_of: Callable[[str], Settings], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "groups": {"main": {"cpus_per_node": 64}},
        "cluster": {"deadlines": {"start_seconds": 1}},
    }
    message = fails("score", settings_of("score"), changes, tmp_path, capsys, code=1)
    assert "group 'main' asks 1 x (64 CPU" in message
    assert "in all: 8 CPU" in message

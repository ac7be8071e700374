"""`rlhf feedback` on the real engines, with a scripted person."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray import cli
from tests.jobs.ppo_runs import metrics_of, saved_weights, write_config
from tests.leftovers import nothing_left

ROOT = Path(__file__).parents[3]
ASKED = "Reward (-2.0 ~ 2.0): "
pytestmark = pytest.mark.timeout(600)
Settings = dict[str, Any]


@pytest.fixture
def settings(workspace: Path, tmp_path: Path) -> Settings:
    return {
        "output": str(tmp_path / "run"),
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(workspace / "prompts.jsonl"), "max_prompt_tokens": 32},
        "policy": {"learning_rate": 1e-3},
        "critics": {"value": {"learning_rate": 1e-3}},
        "rollout": {"max_new_tokens": 12, "deterministic": True},
        "tracking": {"wandb": "off", "tensorboard": False},
    }


def command(config: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_ray.cli", "feedback", str(config), *options]


def converse(config: Path, typed: str, *options: str) -> str:
    """Run the command with these lines as its standard input; returns what it printed."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    done = subprocess.run(
        command(config, *options),
        input=typed,
        capture_output=True,
        text=True,
        env=environment,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "feedback.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_mistakes_then_a_score_and_one_step(settings: Settings, workspace: Path, tmp_path: Path) -> None:
    printed = converse(write_config(tmp_path / "feedback.yaml", settings), "abc\n3\n1.5\n")
    # Three entries for the first answer; at the second the input ends.
    assert printed.count(ASKED) == 4
    assert "abc is not a number" in printed
    assert "3 is outside -2.0 ~ 2.0" in printed

    run = tmp_path / "run"
    [row] = rows_of(run)
    assert row["reward"] == 1.5
    assert row["label_seconds"] >= 0
    [step] = metrics_of(run)
    assert step["policy/optimizer_steps"] == 1
    assert step["objective/scores"] == 1.5
    # One answer alone: nothing divided by zero, and something was learned.
    assert all(math.isfinite(value) for value in step.values())
    assert step["grad_norm/policy"] > 0
    assert 0 < step["sync/logprob_diff"] <= 1e-4

    before, after = (load_file(folder / "model.safetensors") for folder in (workspace / "base", run / "final"))
    assert any(not torch.equal(after[name], weights) for name, weights in before.items())
    assert (run / "checkpoints" / "step_1").is_dir()
    assert (run / "Terminal-Human-Feedback.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_sessions_go_on_and_can_be_replayed(settings: Settings, tmp_path: Path) -> None:
    config = write_config(tmp_path / "feedback.yaml", settings)
    whole, parts, again = tmp_path / "whole", tmp_path / "parts", tmp_path / "again"
    converse(config, "1.5\n-1\n0.5\n", "--output", str(whole))
    converse(config, "1.5\n", "--output", str(parts))
    printed = converse(config, "-1\n0.5\n", "--output", str(parts))
    assert "[2] Prompt: " in printed
    assert "[1] Prompt: " not in printed
    assert [row["reward"] for row in rows_of(parts)] == [1.5, -1.0, 0.5]
    printed = converse(config, "", "--output", str(again), "--replay", str(whole / "feedback.jsonl"))
    assert ASKED not in printed
    assert [row["reward"] for row in rows_of(again)] == [1.5, -1.0, 0.5]
    for role in ("policy", "critic"):
        expected = saved_weights(whole, 3, role)
        for run in (parts, again):
            found = saved_weights(run, 3, role)
            assert all(torch.equal(found[name], weights) for name, weights in expected.items()), run.name

    # A crash after the last checkpoint: what was scored since is learned again, and nobody is asked for it twice.
    lost = [path for path in (parts / "checkpoints").iterdir() if path.name == "step_3"]
    for path in (*lost, *(parts / "checkpoints").glob("*3*")):
        subprocess.run(["rm", "-rf", str(path)], check=True)
    printed = converse(config, "", "--output", str(parts))
    assert "[4] Prompt: " in printed
    assert "[3] Prompt: " not in printed
    found = saved_weights(parts, 3, "policy")
    assert all(torch.equal(found[name], weights) for name, weights in saved_weights(whole, 3, "policy").items())


@pytest.mark.slow
def test_ctrl_c_saves_and_leaves(settings: Settings, tmp_path: Path) -> None:
    config = write_config(tmp_path / "feedback.yaml", settings)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with nothing_left():
        process = subprocess.Popen(
            command(config), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"2\n")
        process.stdin.flush()
        printed = b""
        while b"[2] Prompt" not in printed or not printed.endswith(ASKED.encode()):
            got = os.read(process.stdout.fileno(), 4096)
            assert got, printed.decode()
            printed += got
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    assert process.returncode == 0, rest.decode()
    assert b"Saving; the same command goes on from here." in rest
    assert [row["reward"] for row in rows_of(tmp_path / "run")] == [2.0]
    assert (tmp_path / "run" / "checkpoints" / "step_1").is_dir()


MISTAKES: dict[str, tuple[Settings, list[str]]] = {
    # name: (changed keys, words of the message)
    "rewards beside the person": (
        {"rewards": [{"kind": "function", "function": "r.py:f"}]},
        ["rewards: here a person scores", "rlhf ppo"],
    ),
    "several prompts a step": ({"prompts_per_step": 4}, ["prompts_per_step", "should be 1"]),
    "several answers": ({"samples_per_prompt": 2}, ["samples_per_prompt", "should be 1"]),
    "an estimator of groups": ({"algorithm": {"advantages": "grpo"}}, ["algorithm.advantages", "gae"]),
    "whitening": ({"algorithm": {"whiten_advantages": True}}, ["whiten_advantages", "mean of a single answer"]),
    "whitened scores": ({"algorithm": {"reward_normalisation": "whiten"}}, ["reward_normalisation", "set scale"]),
    "a range upside down": ({"reward_range": [2, -2]}, ["reward_range", "[lowest, highest]"]),
    "a range without end": ({"reward_range": [0, float("inf")]}, ["reward_range"]),
    "held-out prompts": ({"evaluation": {"data": {"path": "p.jsonl"}}}, ["evaluation.data", "nobody scores"]),
    "a recording": ({"rollout": {"record": "r"}}, ["rollout.record", "feedback.jsonl"]),
    "another language": ({"language": "fr"}, ["language", "'en' or 'zh'"]),
    "the engine's own of another policy's answers": (
        {"replay": "prompts.jsonl", "algorithm": {"old_logprobs": "engine"}},
        ["algorithm.old_logprobs", "another policy sampled"],
    ),
    "engines that write ahead": (
        {"algorithm": {"max_staleness": 1}},
        ["algorithm.max_staleness", "each answer waits for a person"],
    ),
    "nothing to replay": ({"replay": "none.jsonl"}, ["replay", "no such file: none.jsonl"]),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_settings_that_have_no_place_here(
    case: str, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, words = MISTAKES[case]
    config = write_config(tmp_path / "feedback.yaml", settings | changes)
    assert cli.main(["feedback", str(config)]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words), message
    assert not (tmp_path / "run").exists()


def test_a_file_of_ppo_is_not_taken_for_one_of_feedback(
    settings: Settings, tmp_path: Path, ppo_settings: Callable[..., Settings]
) -> None:
    from rlhf_ray.config.reading.verbs import deduce_verb

    assert deduce_verb(str(write_config(tmp_path / "feedback.yaml", settings | {"language": "zh"}))) == "feedback"
    assert deduce_verb(str(write_config(tmp_path / "ppo.yaml", ppo_settings(tmp_path / "run")))) == "ppo"

"""What tests of runs read from their folders."""

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from rlhf_ray.data.records import Sample
from rlhf_ray.rollout.recording import sample_from_json

TIMED = ("time", "step_time", "tokens_per_second", "engines/idle")
TIMED_PREFIXES = ("time/", "sync/")
UNTIMED = ("sync/logprob_diff", "sync/tolerance", "sync/version")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_config(path: Path, settings: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    return path


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Rows of `metrics.jsonl`."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def untimed(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what differs from run to run by the clock alone."""
    return {
        name: value
        for name, value in row.items()
        if name in UNTIMED or (name not in TIMED and not name.startswith(TIMED_PREFIXES))
    }


def training_rows(run: Path) -> list[dict[str, Any]]:
    """Rows of the steps, without those of evaluations."""
    return [row for row in metrics_of(run) if "objective/kl" in row]


def evaluation_rows(run: Path) -> list[dict[str, Any]]:
    """Rows of evaluations."""
    return [row for row in metrics_of(run) if "eval_reward" in row]


def saved_tensors(run: Path, step: int, role: str) -> dict[str, torch.Tensor]:
    """All that the ranks of a role wrote into the checkpoint of a step, by name."""
    parts = sorted((run / "checkpoints" / f"step_{step}" / role).glob("*.safetensors"))
    assert parts
    return {name: tensor for part in parts for name, tensor in load_file(part).items()}


def saved_weights(run: Path, step: int, role: str) -> dict[str, torch.Tensor]:
    """Weights of a role in the checkpoint of a step, by parameter."""
    tensors = saved_tensors(run, step, role)
    return {name.removeprefix("master/"): value for name, value in tensors.items() if name.startswith("master/")}


def recorded_steps(recording: Path) -> list[list[Sample]]:
    """Samples of each step of a recording, in the order in which they were trained."""
    steps: list[list[Sample]] = []
    for line in recording.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "format" in row:
            assert row["step"] == len(steps)
            steps.append([])
        else:
            steps[-1].append(sample_from_json(row))
    return steps

"""The part that runs the product itself: PPO whose roles share the GPU."""

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.gpu.machine import gpu_names, peaks_of
from benchmarks.gpu.model import half_billion, miniature
from rlhf_ray import cli
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.jobs.tools import PlanConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.jobs.plan.floors import floors
from rlhf_ray.jobs.plan.footprints import role_footprints
from rlhf_ray.runs.layouts import checked_layouts

STEPS = 20
PRESET = Path(__file__).parents[2] / "configs" / "ppo_0.5b_1gpu.yaml"
JUDGE = """
def letters(prompts, completions, **columns):
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in completions]
"""
GIB = 2**30


def arguments(folder: Path, model: Path) -> list[str]:
    """Write what the run reads, and return its command line: the preset, on random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.py").write_text(JUDGE)
    prompts = (json.dumps({"prompt": f"Item {number}: the"}) for number in range(256))
    (folder / "prompts.jsonl").write_text("\n".join(prompts) + "\n")
    reward = {"name": "letters", "kind": "function", "function": f"{folder}/judge.py:letters"}
    settings: dict[str, Any] = {
        "output": folder / "ppo",
        "model.path": model,
        "data.path": folder / "prompts.jsonl",
        "data.max_prompt_tokens": 64,
        "rewards": json.dumps([reward]),
        "steps": STEPS,
        "prompts_per_step": 64,
        "samples_per_prompt": 2,
        "rollout.max_new_tokens": 128,
        "tracking.wandb": "off",
    }
    return [str(PRESET), *(text for name, value in settings.items() for text in (f"--{name}", str(value)))]


def ppo(folder: Path) -> dict[str, float]:
    """Run it, or what is left of it; a run that broke off goes on where it was."""
    command = arguments(folder, half_billion(folder))
    code = cli.main(["ppo", *command])
    if code:
        raise SystemExit(code)
    lines = (folder / "ppo" / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "step_time" in row]
    step = statistics.median(row["step_time"] for row in rows[2:])
    parts = {name: statistics.median(row[name] for row in rows[2:]) for name in ("time/train", "time/sync")}
    floor = floor_seconds(command, gpu_names()[0])
    return {"steps": len(rows), "step_seconds": step, "floor_seconds": floor, "share_of_floor": floor / step, **parts}


def rehearse(folder: Path) -> None:
    """Read the run's config, and its floor, as if the model were a small one."""
    floor = floor_seconds(arguments(folder, miniature(folder)), "NVIDIA H200")
    assert floor > 0, "the plan says nothing of the step"


def floor_seconds(command: list[str], name: str) -> float:
    """Return the seconds that the plan says a step takes at least on a GPU."""
    config = load_job("ppo", command)
    assert isinstance(config, PPOConfig)
    tflops, bandwidth = peaks_of(name)
    machine = PlanConfig(job=command, gpu_tflops=tflops, gpu_bandwidth=bandwidth)
    footprints, _ = role_footprints(config, machine.gpu_gib * GIB)
    [part] = checked_layouts(config)
    return sum(floor.seconds for floor in floors(config, part, footprints, machine).values())

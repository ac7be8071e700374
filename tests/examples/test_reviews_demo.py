"""`make demo` at a fiftieth of its size, then what the README and the docs do with its results."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPARED = ("reward", "oracle", "written", "distinct2", "length")
FIGURES = {
    *(f"{name}_{when}" for name in COMPARED for when in ("before", "after")),
    *("kl", "steps", "seconds", "tokens_per_second", "sync_logprob_diff", "signs_of_over_optimisation"),
}
pytestmark = pytest.mark.timeout(600)


def run(folder: Path, *command: str) -> str:
    """Run Python in a folder; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder in which it ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, run(folder, "-m", "examples.reviews.demo", "--scale", "0.02")


def test_it_sums_up(demo: tuple[Path, str]) -> None:
    folder, printed = demo
    summary = json.loads((folder / "outputs" / "demo" / "summary.json").read_text())
    assert summary.keys() == FIGURES
    assert 0 < summary["sync_logprob_diff"] <= 1e-4
    for name in ("reward", "oracle", "distinct2"):
        assert all(0 <= summary[f"{name}_{when}"] <= 1 for when in ("before", "after"))
    assert "Held-out prompts, before and after PPO" in printed
    assert "outputs/demo/summary.json" in printed


def test_it_leaves_models_and_pictures(demo: tuple[Path, str]) -> None:
    for stage in ("sft", "reward", "ppo"):
        run_folder = demo[0] / "outputs" / "demo" / stage
        assert (run_folder / "final" / "model.safetensors").is_file()
        assert (run_folder / "report.html").is_file()
        assert (run_folder / "curves.png").read_bytes().startswith(b"\x89PNG")


CONFIG = str(ROOT / "configs" / "ppo_cpu_tiny.yaml")


def test_a_run_of_your_own_can_be_planned(demo: tuple[Path, str]) -> None:
    assert "policy" in run(demo[0], "-m", "rlhf_ray.cli", "plan", CONFIG)


@pytest.mark.slow
def test_a_run_of_your_own_goes_on_from_it(demo: tuple[Path, str]) -> None:
    run(demo[0], "-m", "rlhf_ray.cli", "ppo", CONFIG, "--steps", "1", "--policy.learning_rate", "2e-4")
    assert (demo[0] / "outputs" / "ppo_cpu_tiny" / "final" / "model.safetensors").is_file()


@pytest.mark.slow
def test_its_model_answers_and_its_reward_model_scores(demo: tuple[Path, str]) -> None:
    folder = demo[0]
    for verb in ("generate", "score"):
        run(folder, "-m", "rlhf_ray.cli", verb, str(ROOT / "examples" / "reviews" / f"{verb}.yaml"))
    outputs = folder / "outputs" / "demo"
    prompts = (outputs / "data" / "prompts_held_out.jsonl").read_text().splitlines()
    answers, scored = (
        [json.loads(line) for line in (outputs / f"{name}.jsonl").read_text().splitlines()]
        for name in ("answers", "scored")
    )
    assert len(answers) == 4 * len(prompts)
    # A model that hardly learned ends some answers at once, and there is nothing to score in those.
    assert len(scored) == sum(bool(row["completion"].strip()) for row in answers)
    assert all(isinstance(row["reward"], float) for row in scored)

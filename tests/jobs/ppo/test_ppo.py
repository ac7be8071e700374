"""`rlhf ppo` on the real Ray, vLLM and DeepSpeed: it learns, writes its folder, and goes on where it was stopped."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.jobs.ppo.run import run
from rlhf_ray.tracking.names import describe
from tests.jobs.actors_here import policy_alone
from tests.jobs.ppo_runs import (
    evaluation_rows,
    metrics_of,
    recorded_steps,
    saved_tensors,
    saved_weights,
    training_rows,
    untimed,
    write_config,
)
from tests.leftovers import nothing_left

# The first test of a fixture waits for its runs, which on a busy machine take minutes.
pytestmark = pytest.mark.timeout(1200)

Settings = Callable[..., dict[str, Any]]
STEPS = 10


def test_the_reward_rises(learned: Path) -> None:
    rows = training_rows(learned)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    scores = [row["objective/scores"] for row in rows]
    assert sum(scores[-3:]) / 3 > scores[0] + 0.1, scores
    evaluations = evaluation_rows(learned)
    assert [row["step"] for row in evaluations] == [0, 3, 6, 9, 10]
    assert evaluations[-1]["eval_reward"] > evaluations[0]["eval_reward"] + 0.1


def test_every_metric_is_one_that_the_docs_explain(learned: Path) -> None:
    rows = metrics_of(learned)
    names = {name for row in rows for name in row} - {"step", "time"}
    assert not [name for name in sorted(names) if not describe(name).meaning]
    wanted = {
        "objective/kl",
        "objective/kl_coefficient",
        "objective/rlhf_reward",
        "objective/entropy",
        "policy/approxkl_avg",
        "policy/clipfrac_avg",
        "loss/policy_avg",
        "loss/value_avg",
        "value/explained_variance",
        "val/ratio",
        "completions/mean_length",
        "rewards/reward/mean",
        "sync/logprob_diff",
        "sync/gather",
        "sync/send",
        "sync/load",
        "sync/pause",
        "sync/verify",
        "sync/bytes_per_second/send",
        "time/generate",
        "time/score",
        "time/train",
        "time/sync",
        "time/idle",
        "tokens_per_second",
        "eval_reward",
        "eval_completions/distinct_2",
    }
    assert not wanted - names


def test_engines_follow_the_policy(learned: Path) -> None:
    for row in training_rows(learned):
        assert 0 <= row["sync/logprob_diff"] <= 1e-4
        assert row["sync/version"] == row["step"]
        assert row["sampling/sampling_logp_difference/max"] <= 1e-4
        assert row["policy/optimizer_steps"] == 4
        parts = sum(value for name, value in row.items() if name.startswith("time/") and name != "time/step")
        assert parts == pytest.approx(row["time/step"], rel=1e-6)


def test_the_kl_coefficient_follows_its_target(learned: Path) -> None:
    rows = training_rows(learned)
    coefficient = 0.01
    for row in rows:
        assert row["objective/kl_coefficient"] == pytest.approx(coefficient, rel=1e-9)
        error = max(-0.2, min(0.2, row["objective/kl"] / 4.0 - 1))
        coefficient *= 1 + error * 32 / 500
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4), "the reference is the policy's starting point"
    assert rows[-1]["objective/kl"] > 0.5


def test_the_folder_holds_the_run(learned: Path, ppo_settings: Settings) -> None:
    resolved = yaml.safe_load((learned / "config.yaml").read_text())
    rollout = {"record": str(learned.parent / "samples.recorded")}
    assert PPOConfig.model_validate(resolved) == PPOConfig.model_validate(ppo_settings(learned, rollout=rollout))
    assert (learned / "curves.png").read_bytes().startswith(b"\x89PNG")
    report = (learned / "report.html").read_text()
    assert "objective/kl" in report or "KL to the reference" in report
    samples = [json.loads(line) for line in (learned / "samples.jsonl").read_text().splitlines()]
    kinds = Counter((row["step"], row["kind"]) for row in samples)
    assert kinds == Counter(
        {(step, "train"): 4 for step in range(1, STEPS + 1)} | {(step, "evaluation"): 4 for step in (0, 3, 6, 9, 10)}
    )
    assert all(isinstance(row["rewards"]["reward"], float) for row in samples)
    assert sorted(path.name for path in (learned / "checkpoints").iterdir()) == ["step_10", "step_4", "step_8"]
    assert json.loads((learned / "run.json").read_text())["status"] == "finished"


def test_every_prompt_is_answered_once_in_a_pass(learned: Path) -> None:
    """Forty prompts in batches of eight: five steps are a pass, each with four samples of a prompt."""
    steps = recorded_steps(learned.parent / "samples.recorded")
    for first in (0, 5):
        answered = Counter((s.prompt_id, s.index) for step in steps[first : first + 5] for s in step)
        assert answered == Counter((str(prompt), index) for prompt in range(40) for index in range(4))
    for step, samples in enumerate(steps):
        assert {span.version for sample in samples for span in sample.weight_versions} == {step}


def test_final_is_a_plain_model_with_the_last_weights(learned: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(learned / "final", dtype="float32")
    trained = saved_weights(learned, STEPS, "policy")
    found = dict(model.named_parameters())
    assert found.keys() == trained.keys()
    for name, value in trained.items():
        assert torch.equal(found[name], value), name
    assert AutoTokenizer.from_pretrained(learned / "final").decode([65]) != ""


def test_the_engine_sampled_from_the_saved_weights(learned: Path) -> None:
    """Step 9 was written by version 8: plain Transformers finds the engine's log-probabilities with that checkpoint."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(learned / "final", dtype="float32")
    model.load_state_dict(saved_weights(learned, 8, "policy"), strict=False)
    for sample in recorded_steps(learned.parent / "samples.recorded")[8]:
        prompt = len(sample.prompt_ids)
        ids = torch.tensor([*sample.prompt_ids, *sample.response_ids]).long()
        with torch.no_grad():
            logits = model(ids[None]).logits[0, prompt - 1 : -1] / 0.9
        logprobs = logits.log_softmax(-1).gather(-1, ids[prompt:, None])[:, 0]
        torch.testing.assert_close(logprobs, torch.tensor(sample.behaviour_logprobs), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def resumed(ppo_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run like `learned` that got SIGTERM after some steps, and that this process went on with."""
    folder = tmp_path_factory.mktemp("resumed")
    config = write_config(folder / "ppo.yaml", ppo_settings(folder / "run"))
    command = [sys.executable, "-m", "rlhf_ray.cli", "ppo", str(config)]
    with nothing_left(), (folder / "log").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            wait_for_steps(folder / "run", 5, first)
            first.send_signal(signal.SIGTERM)
            assert first.wait(300) == 0, (folder / "log").read_text()
        finally:
            first.kill()
        assert "SIGTERM: saving after this step" in (folder / "log").read_text()
        last = max(row["step"] for row in metrics_of(folder / "run"))
        assert 5 <= last < STEPS
        assert (folder / "run" / "checkpoints" / f"step_{last}" / "manifest.json").exists()
        assert not (folder / "run" / "final").exists()
        assert json.loads((folder / "run" / "run.json").read_text())["status"] == "stopped"
    with policy_alone():
        run(PPOConfig.model_validate(ppo_settings(folder / "run")))
    return folder / "run"


def wait_for_steps(run: Path, steps: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len(training_rows(run)) >= steps:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {steps} steps; exit code {process.poll()}")


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_weights_and_optimizer_are_those_of_an_uninterrupted_run(learned: Path, resumed: Path, role: str) -> None:
    expected, found = saved_tensors(learned, STEPS, role), saved_tensors(resumed, STEPS, role)
    assert expected.keys() == found.keys()
    assert any(name.startswith("exp_avg_sq/") for name in expected)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different


def test_metrics_are_those_of_an_uninterrupted_run(learned: Path, resumed: Path) -> None:
    for rows_of in (training_rows, evaluation_rows):
        expected, found = rows_of(learned), rows_of(resumed)
        assert [row["step"] for row in found] == [row["step"] for row in expected], "each step once"
        for before, after in zip(expected, found, strict=True):
            if "sync/version" not in after:
                # The step at which it was told to leave ended without a sync; the resumed run began with it.
                before = {name: value for name, value in before.items() if not name.startswith("sync/")}
            assert untimed(after) == untimed(before)


def test_fewer_steps_than_were_made_are_refused(learned: Path, ppo_settings: Settings, tmp_path: Path) -> None:
    folder = shutil.copytree(learned, tmp_path / "run")
    with pytest.raises(BadInput, match=rf"steps: 1, but the run in {folder} has made {STEPS} already"):
        run(PPOConfig.model_validate(ppo_settings(folder, steps=1)))
    assert (folder / "config.yaml").read_bytes() == (learned / "config.yaml").read_bytes()


def test_final_is_that_of_an_uninterrupted_run(learned: Path, resumed: Path) -> None:
    assert (resumed / "final" / "model.safetensors").read_bytes() == (
        learned / "final" / "model.safetensors"
    ).read_bytes()

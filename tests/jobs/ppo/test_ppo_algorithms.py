"""The main estimators and losses on the real engines. One start serves them all: each begins from the same weights."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray.cluster.connect import Cluster, connect
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.jobs.ppo import run as ppo
from rlhf_ray.jobs.ppo.roles import PPORoles
from rlhf_ray.jobs.ppo.start import start_roles
from rlhf_ray.tracking.names import describe
from tests.jobs.actors_here import policy_alone
from tests.jobs.conftest import PROMPTS, TEXTS
from tests.jobs.ppo_runs import metrics_of, saved_tensors, training_rows, untimed, write_rows

pytestmark = [pytest.mark.usefixtures("ray_session"), pytest.mark.timeout(1200)]

Settings = Callable[..., dict[str, Any]]

REWARD = """
def letters(prompts, completions, yes_or_no=(), **columns):
    shares = [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in completions]
    if not any(yes_or_no):
        return shares
    # Many groups agree, as with exact answers.
    return [float(share > 0.45) for share in shares]
"""

STEPS = 4
DECAY = 0.75
RUNS: dict[str, dict[str, Any]] = {
    "grpo": {
        "advantages": "grpo",
        "loss_aggregation": "sequence_mean_token_mean",
        "kl": {"coefficient": 0.01, "place": "loss"},
        "off_policy": "truncated",
    },
    "rloo": {"advantages": "rloo", "policy_loss": "clip_sequence", "kl": {"coefficient": 0.01}},
    "reinforce_plus_plus": {
        "advantages": "reinforce_plus_plus",
        "kl": {"coefficient": 0.01, "target": 4.0, "horizon": 500},
        "reward_normalisation": "scale",
        "reward_clip": 5.0,
        "dual_clip": 3.0,
    },
    "dapo": {
        "advantages": "dr_grpo",
        "loss_aggregation": "sequence_mean_token_sum_norm",
        "clip_range_high": 0.28,
        "kl": {"coefficient": 1e-3},
        "filter_groups": 3,
        "overlong_penalty": [4, 0.25],
    },
    "gspo": {
        "advantages": "grpo",
        "policy_loss": "gspo",
        "clip_range": 0.05,
        "clip_range_high": 0.06,
        "loss_aggregation": "sequence_mean_token_mean",
        "kl": {"coefficient": 0.01, "place": "loss", "estimator": "k2"},
    },
    "remax": {"advantages": "remax", "policy_loss": "cispo", "entropy_coefficient": 1e-3, "kl": {"coefficient": 0.01}},
}


LONGER: dict[str, dict[str, Any]] = {
    "reinforce_plus_plus_baseline": {
        "advantages": "reinforce_plus_plus_baseline",
        "kl": {"coefficient": 1e-3, "place": "loss", "estimator": "k2"},
    },
    "sapo": {"advantages": "grpo", "policy_loss": "sapo", "kl": {"coefficient": 1e-3}},
}


@pytest.fixture(scope="module")
def data(workspace: Path) -> Path:
    """The reward and the prompts, also as such whose reward is 0 or 1."""
    (workspace / "yes_or_no.py").write_text(REWARD)
    write_rows(workspace / "yes_or_no.jsonl", [{"prompt": prompt, "yes_or_no": True} for prompt in PROMPTS])
    (workspace / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return workspace


@pytest.fixture(scope="module")
def config_of(data: Path, ppo_settings: Settings) -> Callable[..., PPOConfig]:
    def make(output: Path, name: str, **changes: Any) -> PPOConfig:
        settings = ppo_settings(
            output,
            **{
                "steps": STEPS,
                "evaluation": {"data": None},
                "checkpoint": {"every_steps": 2, "keep": 10},
                "rewards": [{"kind": "function", "function": f"{data}/yes_or_no.py:letters", "cpus_per_worker": 0.1}],
                **changes,
            },
        )
        del settings["critics"]
        settings["algorithm"] = (RUNS | LONGER)[name]
        if name == "gspo":
            texts = {"path": str(data / "texts.txt"), "max_tokens": 24}
            settings["ptx"] = {"data": texts, "coefficient": 0.5, "batch_size": 3}
            settings["policy"] = settings["policy"] | {"ema_decay": DECAY}
        if name == "dapo":
            settings["data"] = settings["data"] | {"path": str(data / "yes_or_no.jsonl")}
        config = PPOConfig.model_validate(settings)
        assert not list(config.problems())
        return config

    return make


@pytest.fixture(scope="module")
def run(
    config_of: Callable[..., PPOConfig], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[PPOConfig], None]]:
    """Make a run with roles that are there already."""
    folder = tmp_path_factory.mktemp("algorithms")
    config = config_of(folder / "none", "grpo")
    with policy_alone(), connect(config.cluster, config.groups) as cluster, start_roles(config, cluster) as roles:
        assert not roles.critics
        initial = str(folder / "initial")
        roles.policy.save(initial)

        @contextmanager
        def shared_cluster(*_: Any) -> Iterator[Cluster]:
            yield cluster

        @contextmanager
        def shared_roles(*_: Any) -> Iterator[PPORoles]:
            roles.policy.load(initial)
            yield roles

        def make(config: PPOConfig) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(ppo, "connect", shared_cluster)
                patch.setattr(ppo, "start_roles", shared_roles)
                ppo.run(config)

        yield make


@pytest.fixture(scope="module")
def runs(
    run: Callable[[PPOConfig], None], config_of: Callable[..., PPOConfig], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The folders of all runs."""
    folder = tmp_path_factory.mktemp("runs")
    for name in RUNS:
        run(config_of(folder / name, name))
    return {name: folder / name for name in RUNS}


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_without_a_critic(name: str, runs: dict[str, Path]) -> None:
    rows = training_rows(runs[name])
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    names = {metric for row in metrics_of(runs[name]) for metric in row} - {"step", "time"}
    assert not [metric for metric in sorted(names) if not describe(metric).meaning]
    assert not [metric for metric in names if "value" in metric or "critic" in metric]
    for row in rows:
        assert row["policy/optimizer_steps"] == 4
        assert row["sync/logprob_diff"] <= 1e-4
        assert row["grad_norm/policy"] > 0
        assert all(math.isfinite(value) for value in row.values())
    kept = json.loads((runs[name] / "checkpoints" / f"step_{STEPS}" / "manifest.json").read_text())
    assert "policy" in json.dumps(kept)
    assert "critic" not in json.dumps(kept)
    assert (runs[name] / "final" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce_plus_plus"])
def test_the_reward_rises(name: str, runs: dict[str, Path]) -> None:
    scores = [row["rewards/reward/mean"] for row in training_rows(runs[name])]
    assert scores[-1] > scores[0] + 0.02, scores


def test_a_few_prompts_are_answered_before_and_after_for_people_to_see(runs: dict[str, Path]) -> None:
    for folder in runs.values():
        rows = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
        shown = [row for row in rows if row["kind"] == "shown"]
        assert [row["step"] for row in shown] == [0] * 4 + [STEPS] * 4
        before, after = shown[:4], shown[4:]
        assert [row["prompt"] for row in before] == [row["prompt"] for row in after] == PROMPTS[:4]
        assert all(isinstance(row["reward"], float) for row in shown)
        assert any(row["response"] != later["response"] for row, later in zip(before, after, strict=True))
        assert "Samples before and after" in (folder / "report.html").read_text(encoding="utf-8")


def test_kl_in_the_loss_and_the_correction_are_reported(runs: dict[str, Path]) -> None:
    rows = training_rows(runs["grpo"])
    for row in rows:
        assert row["objective/rlhf_reward"] == row["objective/scores"], "the reward has no penalty"
        assert 0 <= row["loss/kl_avg"] < 1
        assert row["sampling/effective_sample_size"] == pytest.approx(1, abs=1e-3)
        assert row["sampling/weight_mean"] == pytest.approx(1, abs=1e-3)
        assert row["sampling/out_of_bounds"] == 0
        assert abs(row["sampling/mismatch_kl_k1"]) < 1e-4
    assert rows[-1]["loss/kl_avg"] > 0
    assert "loss/kl_avg" not in training_rows(runs["rloo"])[0]


def test_groups_that_agree_are_replaced(runs: dict[str, Path]) -> None:
    """Eight groups a step, all of them with a difference, or as many as three batches of prompts gave."""
    rows = training_rows(runs["dapo"])
    assert any(row["filter/prompts"] > 8 for row in rows), "else the test says nothing"
    for row in rows:
        kept = round(row["filter/prompts"] * (1 - row["frac_reward_zero_std"]))
        assert kept == 8 or row["filter/prompts"] == 24
        assert 0 < row["rewards/reward/mean"] < 1
    state = json.loads((runs["dapo"] / "checkpoints" / f"step_{STEPS}" / "manifest.json").read_text())["state"]
    assert state["prompts"]["in_flight"] == []
    answered = state["prompts"]["epoch"] * len(PROMPTS) + state["prompts"]["position"]
    assert answered == sum(row["filter/prompts"] for row in rows), "each prompt was used once, kept or not"


def test_texts_that_are_mixed_in_are_learned(runs: dict[str, Path]) -> None:
    likelihoods = [row["loss/ptx_avg"] for row in training_rows(runs["gspo"])]
    assert likelihoods[-1] < likelihoods[0] - 0.3, likelihoods
    state = json.loads((runs["gspo"] / "checkpoints" / f"step_{STEPS}" / "manifest.json").read_text())["state"]
    assert state["ptx"]["epoch"] * len(TEXTS) + state["ptx"]["position"] == STEPS * 4 * 3, "three for each update"
    assert "loss/ptx_avg" not in training_rows(runs["grpo"])[0]


def test_the_average_of_the_weights_is_exported_beside_the_last(runs: dict[str, Path], workspace: Path) -> None:
    from safetensors.torch import load_file

    run = runs["gspo"]
    last, average = (load_file(run / name / "model.safetensors") for name in ("final", "final_average"))
    kept = saved_tensors(run, STEPS, "policy")
    assert last.keys() == average.keys()
    for name, value in average.items():
        assert torch.equal(value, kept[f"average/{name}"]), name
    moved = {name: value for name, value in last.items() if not torch.equal(value, average[name])}
    assert moved, "the average lags behind"
    start = load_file(workspace / "base" / "model.safetensors")
    distances = [sum(float((w[name] - start[name]).norm()) for name in moved) for w in (average, last)]
    assert 0 < distances[0] < distances[1]
    assert not (runs["grpo"] / "final_average").exists()


def test_running_moments_are_kept(runs: dict[str, Path]) -> None:
    path = runs["reinforce_plus_plus"] / "checkpoints" / f"step_{STEPS}" / "manifest.json"
    moments = json.loads(path.read_text())["state"]["reward_moments"]
    assert moments["count"] == STEPS * 32
    means = [row["rewards/reward/mean"] for row in training_rows(runs["reinforce_plus_plus"])]
    assert moments["mean"] == pytest.approx(sum(means) / STEPS, rel=1e-5)


@pytest.mark.parametrize("name", ["dapo", "reinforce_plus_plus", pytest.param("gspo", marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_bit_for_bit(
    name: str,
    run: Callable[[PPOConfig], None],
    runs: dict[str, Path],
    config_of: Callable[..., PPOConfig],
    tmp_path: Path,
) -> None:
    run(config_of(tmp_path / "run", name, steps=2))
    run(config_of(tmp_path / "run", name))
    expected, found = saved_tensors(runs[name], STEPS, "policy"), saved_tensors(tmp_path / "run", STEPS, "policy")
    assert not [tensor for tensor in expected if not torch.equal(expected[tensor], found[tensor])]
    rows = [[untimed(row) for row in training_rows(folder)] for folder in (runs[name], tmp_path / "run")]
    assert rows[0] == rows[1]
    assert Counter(row["step"] for row in rows[1]) == Counter(range(1, STEPS + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RUNS, *LONGER])
def test_each_raises_the_reward_of_held_out_prompts(
    name: str,
    run: Callable[[PPOConfig], None],
    config_of: Callable[..., PPOConfig],
    ppo_settings: Settings,
    tmp_path: Path,
) -> None:
    evaluation = ppo_settings(tmp_path)["evaluation"] | {"every_steps": 40, "samples_per_prompt": 8}
    run(config_of(tmp_path / "run", name, steps=40, evaluation=evaluation, checkpoint={"every_steps": 0}))
    rewards = [row["eval_reward"] for row in metrics_of(tmp_path / "run") if "eval_reward" in row]
    assert rewards[-1] > rewards[0] + 0.2, rewards

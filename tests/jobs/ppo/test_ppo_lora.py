"""PPO with adapters on the real engines: merged on the way, or alone and loaded in place; the reference is within."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray.cluster.connect import Cluster
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.jobs.ppo import run as ppo
from rlhf_ray.roles.trainer import TrainerGroup
from tests.jobs.ppo_runs import evaluation_rows, saved_tensors, training_rows, untimed

pytestmark = pytest.mark.usefixtures("ray_session")

STEPS = 3
Settings = Callable[..., dict[str, Any]]


def config(ppo_settings: Settings, folder: Path, **changes: Any) -> PPOConfig:
    lora = {"r": 8, "lora_alpha": 32}
    trained = {"learning_rate": 2e-2, "lora": lora}
    settings = ppo_settings(
        folder,
        steps=STEPS,
        policy=trained | changes.pop("policy", {}),
        critics={"value": trained | {"epsilon": 1e-4, "cpus_per_worker": 0.3}},
        evaluation={"every_steps": STEPS},
        checkpoint={"every_steps": 2},
        **changes,
    )
    del settings["reference"]
    return PPOConfig.model_validate(settings)


@pytest.fixture(scope="module")
def merged(ppo_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose engines get merged weights."""
    folder = tmp_path_factory.mktemp("merged") / "run"
    started: list[str] = []
    begin = TrainerGroup.__init__

    def noting(group: TrainerGroup, cluster: Cluster, name: str, *rest: Any, **named: Any) -> None:
        started.append(name)
        begin(group, cluster, name, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "__init__", noting)
        ppo.run(config(ppo_settings, folder))
    assert started == ["policy", "critic"], "the reference is no role of its own"
    return folder


@pytest.fixture(scope="module")
def reloaded(ppo_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with adapters loaded in place."""
    folder = tmp_path_factory.mktemp("reloaded") / "run"
    ppo.run(config(ppo_settings, folder, rollout={"adapter": "reload"}))
    return folder


def test_engines_compute_with_the_adapted_policy(merged: Path) -> None:
    rows = training_rows(merged)
    assert len(rows) == STEPS
    assert max(row["sync/logprob_diff"] for row in rows) < 1e-4
    assert [row["sync/version"] for row in rows] == [1, 2, 3]
    # At first the policy is its reference; then it leaves it, and the first ratio of each step is 1.
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["objective/kl"] > 0.01


@pytest.mark.slow
def test_an_adapter_loaded_in_place_is_as_good(merged: Path, reloaded: Path) -> None:
    rows, others = training_rows(reloaded), training_rows(merged)
    assert max(row["sync/logprob_diff"] for row in rows) < 1e-4
    assert [row["sync/version"] for row in rows] == [1, 2, 3]
    # Before the first update both engines hold the same weights and draw the same samples.
    for name in ("objective/scores", "objective/kl", "loss/policy_avg"):
        assert rows[0][name] == pytest.approx(others[0][name], abs=1e-5), name
    for row, other in zip(rows, others, strict=True):
        assert row["objective/scores"] == pytest.approx(other["objective/scores"], abs=0.1)
    assert not list(Path("/dev/shm").glob("rlhf_ray_adapter_*"))


def test_the_finished_adapter_loads_in_plain_peft(merged: Path, workspace: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    policy = AutoPeftModelForCausalLM.from_pretrained(merged / "final")
    base = AutoModelForCausalLM.from_pretrained(workspace / "base", dtype=torch.float32)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        assert float((policy(ids).logits - base(ids).logits).abs().max()) > 0.1
        with policy.disable_adapter():
            torch.testing.assert_close(policy(ids).logits, base(ids).logits)


def test_checkpoints_hold_adapters_alone(merged: Path) -> None:
    for role, head in (("policy", False), ("critic", True)):
        tensors = saved_tensors(merged, 2, role)
        masters = [name for name in tensors if name.startswith("master/")]
        assert [name for name in masters if ".lora_" not in name] == (["master/score.weight"] if head else [])
    assert {".".join(name.split(".")[:2]) for name in load_file(merged / "final" / "adapter_model.safetensors")} == {
        "base_model.model"
    }


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["merged", "reload"])
def test_resumed_equals_not_interrupted(
    adapter: str, ppo_settings: Settings, merged: Path, reloaded: Path, tmp_path: Path
) -> None:
    """The run of a folder whose last step is gone."""
    import shutil

    whole = merged if adapter == "merged" else reloaded
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step_{STEPS}")
    ppo.run(config(ppo_settings, tmp_path / "run", rollout={"adapter": adapter}))
    assert [untimed(row) for row in training_rows(tmp_path / "run")] == [untimed(row) for row in training_rows(whole)]
    assert [untimed(row) for row in evaluation_rows(tmp_path / "run")] == [untimed(r) for r in evaluation_rows(whole)]
    found, expected = (saved_tensors(run, STEPS, "policy") for run in (tmp_path / "run", whole))
    assert not [name for name in expected if not np.array_equal(found[name], expected[name])]

"""The memory of each worker, by what is known of its model and its settings."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import TrainerConfig
from rlhf_ray.jobs.plan.footprints import read_shape, role_footprints
from rlhf_ray.jobs.plan.memory import (
    DRIVER,
    ENGINE,
    ENGINE_WORKER,
    FUNCTION,
    RAY,
    SCORER,
    TRAINER,
    engine_memory,
    forward_memory,
    other_processes,
    trainer_memory,
    worker_process,
)
from rlhf_ray.jobs.plan.run import GIB
from tests.jobs.plan.plan_models import CONFIGS, SEVEN_B, SEVEN_B_PARAMETERS, SHAPE, with_models


def test_parameters_are_counted_without_weights(seven_b: Path) -> None:
    shape = read_shape(ModelConfig(path=str(seven_b)))
    assert shape.parameters == SEVEN_B_PARAMETERS
    assert shape.output_head == 152064 * 3584
    assert (shape.hidden, shape.layers, shape.kv_width) == (3584, 28, 512)


def test_tied_output_head_is_not_counted_twice(seven_b: Path) -> None:
    (seven_b / "config.json").write_text(json.dumps(SEVEN_B | {"tie_word_embeddings": True}))
    shape = read_shape(ModelConfig(path=str(seven_b)))
    assert shape.parameters == SEVEN_B_PARAMETERS - 152064 * 3584
    assert shape.output_head == 0


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    # ZeRO paper, table 1, with float32 gradients beside the bfloat16 ones: 2 + 6 + 12 bytes a parameter.
    [(1, 2, 6, 12 / 4), (2, 2, 6 / 4, 12 / 4), (3, 2 / 4, 6 / 4, 12 / 4)],
)
def test_zero_divides_what_its_stage_says(stage: Any, weights: float, gradients: float, optimizer: float) -> None:
    trainer = TrainerConfig(workers=4, zero_stage=stage)
    memory = trainer_memory(SHAPE, trainer, "bfloat16", tokens=128, scalar=False)
    assert memory.weights == pytest.approx(weights * 1e6)
    assert memory.gradients == pytest.approx(gradients * 1e6)
    assert memory.optimizer == pytest.approx(optimizer * 1e6)


def test_float32_without_zero() -> None:
    memory = trainer_memory(SHAPE, TrainerConfig(), "float32", tokens=128, scalar=False)
    assert (memory.weights, memory.gradients, memory.optimizer) == (4e6, 4e6, 8e6)


def test_recomputing_saves_activations() -> None:
    plain = trainer_memory(SHAPE, TrainerConfig(), "bfloat16", 128, scalar=False).activations
    saved = trainer_memory(SHAPE, TrainerConfig(gradient_checkpointing=True), "bfloat16", 128, scalar=False).activations
    assert plain == 34 * 128 * 64 * 4
    assert saved == 2 * 128 * 64 * 4 + 34 * 128 * 64


def test_scalar_models_have_no_output_head() -> None:
    with_head = forward_memory(SHAPE, "bfloat16", 1, scalar=False).weights
    assert with_head - forward_memory(SHAPE, "bfloat16", 1, scalar=True).weights == 2 * SHAPE.output_head


def test_a_frozen_model_may_be_sharded() -> None:
    assert forward_memory(SHAPE, "bfloat16", 1, scalar=False, shards=4).weights == 2 * SHAPE.parameters / 4


def test_engines_fill_their_share() -> None:
    memory = engine_memory(SHAPE, "bfloat16", RolloutConfig(gpus_per_worker=2), gpu_bytes=1e8)
    assert memory.weights == 1e6
    assert memory.total == pytest.approx(0.9 * 1e8)
    assert engine_memory(SHAPE, "bfloat16", RolloutConfig(gpus_per_worker=1), gpu_bytes=1e6).cache == 0
    # Keys and values of 32 numbers of 2 bytes in 4 layers, on one of two devices.
    assert memory.cached_tokens == pytest.approx(memory.cache / (2 * 4 * 32 * 2 / 2))


def test_engines_take_the_share_that_the_user_gives() -> None:
    def total(**rollout: Any) -> float:
        return engine_memory(SHAPE, "bfloat16", RolloutConfig(**rollout), gpu_bytes=1e8).total

    assert total(gpus_per_worker=1, engine={"gpu_memory_utilization": 0.3}) == pytest.approx(0.3 * 1e8)
    assert total(gpus_per_worker=1, engine={"kv_cache_memory_bytes": 7}) == 2e6 + 7
    assert total(engine={"kv_cache_memory_bytes": 7}) == 2e6 + 7


def test_on_cpu_a_plan_counts_what_processes_hold_beside_their_models(
    seven_b: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset, model = str(CONFIGS / "ppo_cpu_tiny.yaml"), str(seven_b)
    function = json.dumps([{"name": "f", "kind": "function", "function": "f.py:f"}])
    arguments = [preset, "--model.path", model, "--rewards", function]
    config = load_job("ppo", arguments, check_files=False)
    found, _ = role_footprints(config, 80 * GIB)
    assert {role: memory.process for role, memory in found.items()} == {
        "policy": TRAINER,
        "critics.value": TRAINER,
        "reference": TRAINER,
        "rollout": ENGINE,
        "rewards.0": SCORER + FUNCTION,
    }
    assert min(TRAINER, ENGINE, SCORER, FUNCTION, DRIVER, RAY) > 0
    whole = sum(memory.total for memory in found.values()) + DRIVER + RAY
    assert cli.main(["plan", "ppo", *arguments]) == 0
    shown = capsys.readouterr().out
    [row] = [line for line in shown.splitlines() if "main node 0 CPU" in line]
    assert row.split("│")[2].strip() == f"{whole / GIB:.2f}"
    assert "│ driver" in shown
    assert "│ Ray" in shown


def test_on_gpus_processes_do_not_count(tmp_path: Path) -> None:
    _, config = with_models(CONFIGS / "ppo_7b_8gpu.yaml", tmp_path)
    found, _ = role_footprints(config, 80 * GIB)
    assert not any(memory.process for memory in found.values())
    assert not other_processes(config)


def test_tensor_parallel_engines_hold_all_their_workers_on_cpu() -> None:
    one = engine_memory(SHAPE, "float32", RolloutConfig(), gpu_bytes=0)
    two = engine_memory(SHAPE, "float32", RolloutConfig(tensor_parallel=2), gpu_bytes=0)
    assert two.weights == one.weights
    assert two.cache == 2 * one.cache, "each worker takes what is asked for"
    assert two.cached_tokens == 2 * one.cached_tokens
    assert worker_process(RolloutConfig(tensor_parallel=2)) == ENGINE + 2 * ENGINE_WORKER

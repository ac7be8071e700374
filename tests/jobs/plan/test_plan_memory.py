"""The memory of each worker, by what is known of its model and its settings."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.config.training import ReferenceConfig, TrainerConfig
from rlhf_ray.jobs.plan.devices import host_loads
from rlhf_ray.jobs.plan.footprints import read_shape, role_footprints
from rlhf_ray.jobs.plan.memory import (
    COMMUNICATOR,
    DRIVER,
    ENGINE,
    ENGINE_WORKER,
    FRAGMENTATION,
    FUNCTION,
    LOGIT_CHUNKS,
    PINNED_ROUNDING,
    RAY,
    SCORER,
    TRAINER,
    ModelShape,
    engine_memory,
    forward_memory,
    sending,
    trainer_memory,
    worker_process,
)
from rlhf_ray.jobs.plan.run import DOES_NOT_FIT, GIB
from rlhf_ray.rollout.engine_arguments import CUDA_CONTEXT_BYTES, gpu_share
from rlhf_ray.runs.layouts import checked_layouts
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
    with_head = forward_memory(SHAPE, "bfloat16", 1, False, ReferenceConfig())
    without = forward_memory(SHAPE, "bfloat16", 1, True, ReferenceConfig())
    assert with_head.weights - without.weights == 2 * SHAPE.output_head
    assert without.head == 0


def test_a_frozen_model_may_be_sharded() -> None:
    sharded = forward_memory(SHAPE, "bfloat16", 1, False, ReferenceConfig(workers=4), sharded=True)
    assert sharded.weights == 2 * SHAPE.parameters / 4
    assert sharded.gathered >= 2 * SHAPE.parameters, "all of a small model is there while it computes"


def test_engines_fill_their_share() -> None:
    memory = engine_memory(SHAPE, "bfloat16", RolloutConfig(gpus_per_worker=2), gpu_bytes=1e8)
    assert memory.weights == 1e6
    assert memory.total - memory.process == pytest.approx(0.9 * 1e8)
    assert engine_memory(SHAPE, "bfloat16", RolloutConfig(gpus_per_worker=1), gpu_bytes=1e6).cache == 0
    # Keys and values of 32 numbers of 2 bytes in 4 layers, on one of two devices.
    assert memory.cached_tokens == pytest.approx(memory.cache / (2 * 4 * 32 * 2 / 2))


def test_engines_take_the_share_that_the_user_gives() -> None:
    def total(**rollout: Any) -> float:
        memory = engine_memory(SHAPE, "bfloat16", RolloutConfig(**rollout), gpu_bytes=1e9)
        return memory.weights + memory.cache + memory.activations

    assert total(gpus_per_worker=1, engine={"gpu_memory_utilization": 0.3}) == pytest.approx(0.3 * 1e9)
    given = {"kv_cache_memory_bytes": 7}
    assert engine_memory(SHAPE, "bfloat16", RolloutConfig(gpus_per_worker=1, engine=given), 1e9).cache == 7
    assert total(engine=given) == 2e6 + 7


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
    assert cli.main(["plan", "--host_gib", "2000", "ppo", *arguments]) == 0
    shown = capsys.readouterr().out
    [row] = [line for line in shown.splitlines() if "main node 0 CPU" in line]
    assert row.split("│")[2].strip() == f"{whole / GIB:.2f}"
    assert "│ driver" in shown
    assert "│ Ray" in shown


def test_tensor_parallel_engines_hold_all_their_workers_on_cpu() -> None:
    one = engine_memory(SHAPE, "float32", RolloutConfig(), gpu_bytes=0)
    two = engine_memory(SHAPE, "float32", RolloutConfig(tensor_parallel=2), gpu_bytes=0)
    assert two.weights == one.weights
    assert two.cache == 2 * one.cache, "each worker takes what is asked for"
    assert two.cached_tokens == 2 * one.cached_tokens
    assert worker_process(RolloutConfig(tensor_parallel=2)) == ENGINE + 2 * ENGINE_WORKER


BIG = ModelShape(
    parameters=SEVEN_B_PARAMETERS,
    output_head=152064 * 3584,
    hidden=3584,
    layers=28,
    kv_width=512,
    vocabulary=152064 * 3584,
    largest=152064 * 3584,
)
EIGHT = TrainerConfig(workers=8, gpus_per_worker=1, zero_stage=3, gradient_checkpointing=True)


def test_the_heads_backward_pass_holds_its_gradient_three_times_and_chunks_of_logits() -> None:
    """In float32, as one chunk's product and as its cast; with the gathered weight 5.8 GiB at 7B."""
    memory = trainer_memory(BIG, EIGHT, "bfloat16", 8192, scalar=False)
    assert memory.head == 152064 * 3584 * (4 + 2 + 2) + LOGIT_CHUNKS * 256 * 2**20
    assert (memory.head + 2 * 152064 * 3584) / GIB == pytest.approx(5.8, abs=0.05)
    adapted = trainer_memory(BIG, EIGHT.model_copy(update={"lora": LoraConfig()}), "bfloat16", 8192, scalar=False)
    assert adapted.head == LOGIT_CHUNKS * 256 * 2**20, "a frozen head has no gradient"


def test_sharded_weights_are_live_while_they_compute() -> None:
    memory = trainer_memory(BIG, EIGHT, "bfloat16", 8192, scalar=False)
    assert 2e9 <= memory.gathered < 2.3e9, "a billion parameters, and buckets"
    whole = trainer_memory(BIG, EIGHT.model_copy(update={"zero_stage": 2}), "bfloat16", 8192, scalar=False)
    assert whole.gathered < 0.3e9


def test_weights_on_their_way_are_there_several_times() -> None:
    policy = trainer_memory(BIG, EIGHT, "bfloat16", 8192, scalar=False)
    rollout = RolloutConfig(gpus_per_worker=1, workers=8)
    assert sending(policy, BIG, rollout, "bfloat16").transfer == 3 * 2 * BIG.largest, "the embedding travels alone"
    large = rollout.model_copy(update={"bucket_megabytes": 4096})
    assert sending(policy, BIG, large, "bfloat16").transfer == 3 * 4096 * 2**20
    assert engine_memory(BIG, "bfloat16", rollout, 80 * GIB).transfer == 2 * 2 * BIG.largest


def test_a_process_on_a_gpu_has_a_context_and_peers_also_while_it_sleeps() -> None:
    memory = trainer_memory(BIG, EIGHT, "bfloat16", 8192, scalar=False)
    assert memory.process == CUDA_CONTEXT_BYTES + COMMUNICATOR
    held = memory.state + memory.gathered + memory.activations + memory.head
    assert memory.total == pytest.approx(memory.process + held * (1 + FRAGMENTATION))
    assert memory.asleep == memory.state == pytest.approx(SEVEN_B_PARAMETERS * 20 / 8)


def test_an_engine_that_takes_turns_leaves_the_others_contexts() -> None:
    rollout = RolloutConfig(gpus_per_worker=1)
    alone, shared = (engine_memory(BIG, "bfloat16", rollout, 80 * GIB, n) for n in (0, 4))
    assert (alone.total - shared.total) / GIB == pytest.approx(4 * 0.45, abs=0.1)
    assert gpu_share(rollout, 4, 80 * GIB) > 0.85
    assert gpu_share(rollout, 4, 24 * GIB) > 0.8
    assert gpu_share(rollout.model_copy(update={"engine": {"gpu_memory_utilization": 0.3}}), 4, 80 * GIB) == 0.3
    assert shared.asleep == PINNED_ROUNDING * 2 * SEVEN_B_PARAMETERS


def test_host_memory_holds_what_sleeps_and_is_refused_where_it_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, config = with_models(CONFIGS / "ppo_7b_8gpu.yaml", tmp_path)
    found, _ = role_footprints(config, 80 * GIB)
    [part] = checked_layouts(config)
    [load] = host_loads(part, found).values()
    assert load["policy"] == 8 * (found["policy"].asleep + found["policy"].beside + found["policy"].copied)
    assert {"driver", "Ray"} < set(load)
    assert cli.main(["plan", "--host_gib", "512", *command[1:]]) == DOES_NOT_FIT
    shown = " ".join(capsys.readouterr().out.split())
    assert "group main: 842 GiB of a machine's 512 of host memory, most of them for rollout, policy, critics" in shown
    apart = load_job("ppo", [str(CONFIGS / "ppo_7b_4node.yaml"), *command[5:]], check_files=False)
    found, _ = role_footprints(apart, 80 * GIB)
    [part] = checked_layouts(apart)
    assert max(sum(load.values()) for load in host_loads(part, found).values()) < 128 * GIB, (
        "nobody sleeps; a part of a checkpoint is held while it is written"
    )


def test_without_gpus_the_machines_memory_is_what_must_suffice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SEVEN_B))
    job = ["ppo", str(CONFIGS / "ppo_cpu_tiny.yaml"), "--model.path", str(model)]
    assert cli.main(["plan", "--host_gib", "2000", *job]) == 0
    assert cli.main(["plan", "--host_gib", "100", *job]) == DOES_NOT_FIT
    shown = " ".join(capsys.readouterr().out.split())
    assert "of a machine's 100, most of them for policy" in shown
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=16 * GIB))
    assert cli.main(["plan", *job]) == DOES_NOT_FIT
    assert "of a machine's 16, most of them for policy" in " ".join(capsys.readouterr().out.split())
    groups = '{"main": {"nodes": 2}}'
    assert cli.main(["plan", *job, "--groups", groups]) == 0, "what they have is not known"

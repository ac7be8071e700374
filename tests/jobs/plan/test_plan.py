import json
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.config.placement import LOGPROBS
from rlhf_ray.config.reading.verbs import deduce_verb, load_job
from rlhf_ray.config.training import ReferenceConfig, TrainerConfig
from rlhf_ray.jobs.plan.devices import ALWAYS, awake, device_loads, host_loads, peak
from rlhf_ray.jobs.plan.footprints import read_shape, role_footprints
from rlhf_ray.jobs.plan.memory import (
    WorkerMemory,
    forward_memory,
    trainer_memory,
)
from rlhf_ray.jobs.plan.run import DOES_NOT_FIT, GIB
from rlhf_ray.runs.layouts import checked_layouts
from tests.jobs.plan.plan_models import CONFIGS, HALF_B, SEVEN_B, SEVEN_B_PARAMETERS, SEVENTY_B, SHAPE, with_models
from tests.jobs.ppo_runs import write_config

PLACED = [path for path in sorted(CONFIGS.glob("*.yaml")) if deduce_verb(str(path)) not in {"data", "label", "compare"}]


@pytest.mark.parametrize("path", PLACED, ids=lambda path: path.name)
def test_presets_can_be_planned(path: Path, seven_b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb = deduce_verb(str(path))
    # Engines of eight GPUs do not divide 28 heads.
    for size, shape in (("_0.5b_", HALF_B), ("_70b_", SEVEN_B | {"num_attention_heads": 56, "num_key_value_heads": 8})):
        if size in path.name:
            (seven_b / "config.json").write_text(json.dumps(shape))
    # A laptop's preset with a model that no laptop holds.
    machine = ["--host_gib", "2000"] if "_cpu_" in path.name else []
    models = ["--model.path", str(seven_b)]
    if verb == "ppo":
        for number, reward in enumerate(load_job(verb, [str(path)], check_files=False).rewards):
            models += [f"--rewards.{number}.path", str(seven_b)] if reward.kind == "model" else []
    assert cli.main(["plan", *machine, verb, str(path), *models]) == 0
    shown = capsys.readouterr().out
    assert "Placement" in shown
    assert "Memory of each device" in shown
    if verb == "ppo":
        algorithm = load_job(verb, [str(path)], check_files=False).algorithm
        assert ("critics.value" in shown) == algorithm.has_critic, "what does not run has no place in the plan"
        assert ("critics.cost" in shown) == algorithm.has_cost_critic


def test_a_job_without_roles_has_no_placement(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", str(CONFIGS / "data.yaml")]) == 0
    shown = capsys.readouterr().out
    assert "Placement" not in shown
    assert "sources.0.path: no such file" in " ".join(shown.split())


def test_seven_b_fits_eight_gpus(seven_b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preset = str(CONFIGS / "ppo_7b_8gpu.yaml")
    models = ["--model.path", str(seven_b), "--rewards.0.path", str(seven_b)]
    assert cli.main(["plan", preset, *models]) == 0
    shown = capsys.readouterr().out
    assert "of a GPU's" not in shown
    assert "The KV cache of an engine holds" in shown

    assert cli.main(["plan", "--gpu_gib", "16", preset, *models]) == DOES_NOT_FIT
    assert "of a GPU's 16" in capsys.readouterr().out


ON_GPUS = [path for path in PLACED if path.name.endswith(("gpu.yaml", "node.yaml")) and deduce_verb(str(path)) == "ppo"]
EXPECTED = ("no such file", "its weights are not here")
"""Warnings of presets whose data and weights are not written for a test."""


def unexpected_warnings(shown: str) -> list[str]:
    """Warnings of other things than missing files."""
    return [part for part in shown.split("warning ")[1:] if not any(words in part for words in EXPECTED)]


HOST_GIB = 931
"""A terabyte."""


@pytest.mark.parametrize("preset", ON_GPUS, ids=lambda path: path.name)
def test_presets_of_ppo_fit_their_gpus(preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In every phase, with all roles that are awake in it, of GPUs of 24 and 80 GB."""
    command, config = with_models(preset, tmp_path)
    gpu_gib = float(command[2])
    assert cli.main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert not unexpected_warnings(shown)
    found, unknown = role_footprints(config, gpu_gib * GIB)
    [part] = checked_layouts(config)
    assert not unknown
    assert found["rollout"].cache > found["rollout"].weights / 2
    for (_, _, device), load in device_loads(part, found).items():
        assert device < 0 or peak(part, load, found).size <= gpu_gib * GIB
    assert all(sum(load.values()) <= HOST_GIB * GIB for load in host_loads(part, found).values())
    assert "Host memory of each machine" in shown
    assert "Floor of each phase" in shown


LARGER = [path for path in PLACED if path.name.endswith(("7b_8gpu.yaml", "70b_64gpu.yaml")) and path not in ON_GPUS]


@pytest.mark.parametrize("preset", LARGER, ids=lambda path: path.name)
def test_larger_presets_fit_their_gpus(preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 80 GB."""
    (tmp_path / "config.json").write_text(json.dumps(SEVENTY_B if "70b" in preset.name else SEVEN_B))
    assert cli.main(["plan", deduce_verb(str(preset)), str(preset), "--model.path", str(tmp_path)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Memory of each device" in shown
    assert not unexpected_warnings(shown)


def test_engines_that_leave_the_policy_no_room_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what policy and weights need together; each of them alone would fit."""
    command, _ = with_models(CONFIGS / "dapo_7b_8gpu.yaml", tmp_path)
    assert cli.main([*command, "--rollout.engine.gpu_memory_utilization", "0.99"]) == DOES_NOT_FIT
    shown = " ".join(capsys.readouterr().out.split())
    assert "rollout need 81 GiB of a GPU's 80 in phase generate; lower rollout.engine.gpu_memory" in shown
    command[2] = "40"
    assert cli.main(command) == DOES_NOT_FIT
    shown = " ".join(capsys.readouterr().out.split())
    assert "policy, rollout need 42 GiB of a GPU's 40 in phase sync; lower rollout.engine.gpu_memory" in shown


def evaluation(folder: Path, **changes: Any) -> Path:
    """A comparison whose roles fit their group one after another, and not side by side."""
    place = {"gpus_per_worker": 1, "cpus_per_worker": 0.6}
    judge = {"name": "judge", "kind": "model", "path": str(folder)} | place
    job = {
        "output": "o",
        "models": {"one": {"path": str(folder)}, "other": {"path": str(folder)}},
        "reference": "one",
        "data": {"path": "prompts.jsonl"},
        "groups": {"main": {"gpus_per_node": 2, "cpus_per_node": 1}},
        "rollout": place,
        "rewards": [judge],
        "measure": place,
    }
    (folder / "evaluate.yaml").write_text(json.dumps(job | changes))
    return folder / "evaluate.yaml"


def test_an_evaluation_places_the_roles_of_each_part_alone(seven_b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = evaluation(seven_b)
    config = load_job("evaluate", [str(path)], check_files=False)
    parts = checked_layouts(config)
    assert [([*part.phases], [*part.layout.slots]) for part in parts] == [
        (["generate"], ["rollout"]),
        (["score"], ["rewards.0"]),
        ([LOGPROBS], ["measure"]),
    ]
    assert {slots[0].devices for part in parts for slots in part.layout.slots.values()} == {(0,)}

    assert cli.main(["plan", "evaluate", str(path)]) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if "main node 0 GPU 0" in line]
    memory, _ = role_footprints(config, 80 * GIB)
    sizes = {role: f"{memory[role].total / GIB:.2f}" for role in ("rollout", "rewards.0", "measure")}
    phases = ["generate", "score", LOGPROBS]
    assert [(row[2], *row[4:6]) for row in rows] == [
        (size, phase, f"{role} {size}") for phase, (role, size) in zip(phases, sizes.items(), strict=True)
    ]
    assert "groups.main: 1 of its GPUs are not used" in " ".join(shown.split())


def test_engines_behind_a_page_take_memory_too(seven_b: Path, tmp_path: Path) -> None:
    answers = {"kind": "rollout", "model": {"path": str(seven_b)}, "rollout": {"gpus_per_worker": 1}}
    settings = {"store": "labels.db", "answers": answers, "prompts": {"path": "p.jsonl"}}
    path = write_config(tmp_path / "label.yaml", settings | {"groups": {"main": {"gpus_per_node": 1}}})
    found, unknown = role_footprints(load_job("label", [str(path)], check_files=False), 80 * GIB)
    assert unknown == []
    assert found["answers.rollout"].weights == 2 * SEVEN_B_PARAMETERS


def test_a_sharded_model_is_measured_in_parts(seven_b: Path) -> None:
    def weights(stage: int) -> float:
        measure = {"gpus_per_worker": 1, "workers": 2, "zero_stage": stage}
        path = evaluation(seven_b, measure=measure, groups={"main": {"gpus_per_node": 2}})
        return role_footprints(load_job("evaluate", [str(path)], check_files=False), 80 * GIB)[0]["measure"].weights

    assert weights(3) == weights(0) / 2


def test_an_evaluation_without_reference_and_texts_measures_nothing(seven_b: Path) -> None:
    path = evaluation(seven_b, reference=None)
    parts = checked_layouts(load_job("evaluate", [str(path)], check_files=False))
    assert [[*part.layout.slots] for part in parts] == [["rollout"], ["rewards.0"]]


def test_what_does_not_fit_in_an_evaluation_names_its_part(seven_b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = {"gpus_per_worker": 1, "cpus_per_worker": 0.6}
    two = [{"name": name, "kind": "model", "path": str(seven_b)} | place for name in "ab"]
    assert cli.main(["plan", "evaluate", str(evaluation(seven_b, rewards=two))]) == 2
    assert "rewards.1: worker 1 of 1 does not fit group 'main'" in capsys.readouterr().err


def test_held_out_prompts_may_be_the_longest(seven_b: Path) -> None:
    arguments = [str(CONFIGS / "ppo_cpu_tiny.yaml"), "--model.path", str(seven_b), "--tokens_per_microbatch", "256"]
    held_out = json.dumps({"path": "held_out.jsonl", "max_prompt_tokens": 20_000})
    short = load_job("ppo", arguments, check_files=False)
    long = load_job("ppo", [*arguments, "--evaluation.data", held_out], check_files=False)
    assert role_footprints(short, 0)[0]["policy"].activations * 10 < role_footprints(long, 0)[0]["policy"].activations
    assert list(short.batch_lines()) == list(long.batch_lines())


def test_roles_that_are_awake_together_add_up() -> None:
    """All of a preset's GPUs hold a policy, a critic, a reference, a reward model and an engine."""
    config = load_job("ppo", [str(CONFIGS / "ppo_7b_8gpu.yaml")], check_files=False)
    [part] = checked_layouts(config)

    def found(policy: float, cache: float, critic: float) -> tuple[str, float]:
        sizes = {"policy": policy, "critics.value": critic, "reference": 1, "rewards.0": 2, "rollout": 20}
        memory = {role: WorkerMemory(weights=size, process=0.5) for role, size in sizes.items()}
        memory["rollout"] = WorkerMemory(weights=20, cache=cache, transfer=3, process=0.5)
        loads = device_loads(part, memory)
        peaks = {(most.phase, most.size) for most in (peak(part, load, memory) for load in loads.values())}
        assert len(loads) == 8
        assert len(peaks) == 1
        return peaks.pop()

    assert found(policy=10, cache=40, critic=10) == ("generate", 62.5), "weights, cache, and the contexts of all five"
    assert found(policy=10, cache=5, critic=10) == ("sync", 35.5), "no cache beside the policy"
    assert found(policy=10, cache=5, critic=50) == ("score", 52.5), "alone"
    assert [names for phase, names in awake(part) if phase == "score"] == [
        ["rewards"],
        ["reference"],
        ["policy"],
        ["critics.value"],
    ]


def test_roles_that_do_not_share_are_always_awake() -> None:
    config = load_job("ppo", [str(CONFIGS / "ppo_7b_4node.yaml")], check_files=False)
    [part] = checked_layouts(config)
    memory = {"reference": WorkerMemory(weights=3), "rewards.0": WorkerMemory(weights=5)}
    # Two workers of half a GPU each.
    found = {(m.phase, m.size) for m in (peak(part, load, memory) for load in device_loads(part, memory).values())}
    assert found == {(ALWAYS, 6), (ALWAYS, 10)}


@pytest.mark.parametrize("verb", ["generate", "score"])
def test_jobs_without_turns_hold_all_their_roles_at_once(verb: str, tmp_path: Path) -> None:
    reward = {"name": "judge", "kind": "model", "path": "m", "gpus_per_worker": 1}
    roles = {
        "generate": {"model": {"path": "m"}, "rollout": {"gpus_per_worker": 1}, "safety": {"cost": reward}},
        "score": {"rewards": [reward, reward | {"name": "other"}]},
    }
    job = {"output": "o.jsonl", "data": {"path": "d"}, "groups": {"main": {"gpus_per_node": 1}}} | roles[verb]
    (tmp_path / "job.yaml").write_text(json.dumps(job))
    config = load_job(verb, [str(tmp_path / "job.yaml")], check_files=False)
    [part] = checked_layouts(config)
    memory = {role: WorkerMemory(weights=3) for role in part.layout.slots}
    assert [peak(part, load, memory).size for load in device_loads(part, memory).values()] == [6]


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ({"workers": 4}, "rollout: some of the engines' GPUs are the policy's"),
        ({"workers": 2, "transport": "ipc"}, "rollout.transport: ipc is for engines on the policy's GPUs"),
        ({"workers": 1, "gpus_per_worker": 2, "transport": "nccl"}, None),
        ({"workers": 1, "gpus_per_worker": 4, "transport": "nccl"}, "rollout: some of the engines"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "ppo"])
def test_weights_that_cannot_reach_the_engines_are_refused_before_ray_starts(
    command: str,
    engines: dict[str, Any],
    message: str | None,
    seven_b: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
) -> None:
    (seven_b / "config.json").write_text(json.dumps(HALF_B))
    job = {
        "output": "o",
        "model": {"path": str(seven_b)},
        "data": {"path": str(seven_b / "job.yaml")},
        "groups": {"main": {"gpus_per_node": 4, "cpus_per_node": 4}},
        "policy": {"workers": 2, "gpus_per_worker": 1},
        "algorithm": {"kl": {"coefficient": 0}},
        "rewards": [{"kind": "http", "url": "http://localhost:1"}],
        "rollout": {"gpus_per_worker": 1} | engines,
    }
    (seven_b / "job.yaml").write_text(json.dumps(job))
    started = []
    monkeypatch.setattr("rlhf_ray.jobs.ppo.run.run", started.append)
    arguments = ["plan", "ppo"] if command == "plan" else ["ppo"]
    code = cli.main([*arguments, str(seven_b / "job.yaml")])
    if message is None:
        assert code == 0
        assert len(started) == (command == "ppo")
    else:
        assert code == 2
        assert f"rlhf: {message}" in capfd.readouterr().err
        assert not started


def test_roles_on_cpu_add_up() -> None:
    config = load_job("ppo", [str(CONFIGS / "ppo_cpu_tiny.yaml")], check_files=False)
    [part] = checked_layouts(config)
    one = forward_memory(SHAPE, "float32", 1, False, ReferenceConfig())
    memory = {"policy": one, "rollout": one}
    loads = device_loads(part, memory)
    assert [peak(part, load, memory).size for load in loads.values()] == [2 * one.total]


def test_a_file_that_fits_two_jobs_asks_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "either.yaml"
    path.write_text("output: o\nmodel: {path: m}\ndata: {path: d.jsonl}\n")
    assert cli.main(["plan", str(path)]) == 2
    assert "fits sft and reward and dpo and feedback; name the job" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("output: o\nmodel: {path: m}\nepoch: 3\n", "is as near to sft and reward and dpo and ppo"),
        ("foo: 1\n", "foo: unknown key. "),
    ],
)
def test_a_file_that_is_as_near_to_two_jobs_asks_which(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the keys of one of them it would be told what is wrong with a job that was not meant."""
    path = tmp_path / "either.yaml"
    path.write_text(text)
    assert cli.main(["plan", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_job_that_was_deduced_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    path = CONFIGS / "kto_0.5b_1gpu.yaml"
    cli.main(["plan", str(path)])
    assert f"{path} is planned as a config of rlhf dpo\n" in capsys.readouterr().out


def test_adapters_have_little_state_and_need_no_reference(seven_b: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = LoraConfig(r=8, target_modules=["q_proj", "self_attn.v_proj"])
    shape = read_shape(ModelConfig(path=str(seven_b)))
    # Grouped keys and values are 4 heads of 128.
    assert shape.adapter_parameters(lora) == 28 * 8 * ((3584 + 3584) + (3584 + 512))
    trainer = TrainerConfig(lora=lora)
    whole = trainer_memory(shape, TrainerConfig(), "bfloat16", 128, scalar=False)
    adapted = trainer_memory(shape, trainer, "bfloat16", 128, scalar=False)
    assert whole.weights < adapted.weights < 1.001 * whole.weights
    assert adapted.gradients < 0.001 * whole.gradients
    assert adapted.optimizer < 0.001 * whole.optimizer

    preset = [str(CONFIGS / "ppo_lora_7b_1gpu.yaml"), "--model.path", str(seven_b), "--rewards.0.path", str(seven_b)]
    assert cli.main(["plan", *preset]) == 0
    shown = capsys.readouterr().out
    assert "policy trains an adapter of rank 32 on all linear layers" in shown
    assert "the policy with its adapter off" in shown
    assert "│ reference" not in shown
    assert "of a GPU's" not in shown

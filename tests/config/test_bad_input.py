"""Bad configs: one clear line that names file, line and key, exit code 2, and nothing written or started."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.reading.verbs import load_job

EXAMPLES = Path(__file__).parents[2] / "examples" / "reviews"

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (change of a valid config, key that the line names, words in the line)
    "unknown key": ({"stepz": 3}, "stepz", "Perhaps you meant steps?"),
    "unknown key in a section": ({"policy.learning_rat": 1e-6}, "policy.learning_rat", "policy.learning_rate?"),
    "unknown key in a named section": ({"critics.value.zero": 1}, "critics.value.zero", "critics.value.zero_stage?"),
    "unknown key in a list item": ({"rewards.0.wait": 1}, "rewards.0.wait", "rewards.0.weight?"),
    "key of another section": ({"learning_rate": 1e-6}, "learning_rate", "policy.learning_rate?"),
    "missing key": ({"model.path": ...}, "model.path", "missing: Model directory or hub name"),
    "missing section": ({"data": ...}, "data", "missing"),
    "wrong type": ({"steps": "many"}, "steps", "valid integer"),
    "fraction of an integer": ({"steps": 1.5}, "steps", "not 1.5"),
    "section is a number": ({"policy": 3}, "policy", "not 3"),
    "number for a section": (
        {"algorithm.kl": 0.1},
        "algorithm.kl",
        "must be a section (its keys: coefficient, place, estimator, target, horizon), not 0.1",
    ),
    "text for a section of many keys": (
        {"algorithm": "grpo"},
        "algorithm",
        "its keys: advantages, policy_loss, loss_aggregation, clip_range, clip_range_high, dual_clip, gamma, "
        "gae_lambda, ...), not 'grpo'",
    ),
    "number for named sections": ({"critics": 3}, "critics", "must be a section of names with values, not 3"),
    "number for a kind": ({"rewards.0": 3}, "rewards.0", "section with a kind, one of model, function, http, not 3"),
    "negative": ({"algorithm.kl.coefficient": -1}, "algorithm.kl.coefficient", "greater than or equal to 0"),
    "out of range": ({"algorithm.gamma": 1.1}, "algorithm.gamma", "less than or equal to 1"),
    "unknown choice": ({"policy.schedule": "linaer"}, "policy.schedule", "Perhaps you meant linear?"),
    "unknown kind": ({"rewards.0.kind": "modell"}, "rewards.0", "Perhaps you meant model?"),
    "kind missing": ({"rewards.0.kind": ...}, "rewards.0", "one of model, function, http"),
    "key of another kind": (
        {"rewards.0.kind": "function", "rewards.0.function": "rules.py:length"},
        "rewards.0.path",
        "is a key of kind model, but the kind here is function, whose own keys are function, timeout_seconds; leave it "
        "out, or replace the whole by --rewards.0 '{kind: function, ...}'",
    ),
    "key that a kind must have": (
        {"rewards.1.function": ...},
        "rewards.1.function",
        "missing: `file.py:name`, called as name(prompts",
    ),
    "no rewards": ({"rewards": []}, "rewards", "needs at least one source"),
    "negative staleness": ({"algorithm.max_staleness": -1}, "algorithm.max_staleness", "greater than or equal to 0"),
    "staleness beyond use": ({"algorithm.max_staleness": 65}, "algorithm.max_staleness", "less than or equal to 64"),
    "half a version": ({"algorithm.max_staleness": 1.5}, "algorithm.max_staleness", "integer"),
    "staleness in words": ({"algorithm.max_staleness": "two"}, "algorithm.max_staleness", "integer"),
    "flight in words": ({"rollout.in_flight": "sometimes"}, "rollout.in_flight", "boolean"),
    "minibatches do not divide": ({"minibatches": 3}, "minibatches", "does not divide the batch of 8 samples"),
    "too few samples for the ranks": ({"minibatches": 8, "policy.workers": 2}, "minibatches", "1 samples for 2 ranks"),
    "no such group": ({"policy.on": "mian"}, "policy.on", "Perhaps you meant main?"),
    "more GPUs than a node has": ({"policy.gpus_per_worker": 1}, "policy.gpus_per_worker", "gpus_per_node, which is 0"),
    "too many workers": (
        {"policy.workers": 9, "prompts_per_step": 90},
        "policy.workers",
        "9 workers",
    ),
    "trainer rank on two GPUs": (
        {"policy.gpus_per_worker": 2, "groups.main": {"gpus_per_node": 8}},
        "policy.gpus_per_worker",
        "raise `workers`",
    ),
    "tensor-parallel fraction": (
        {"rollout.gpus_per_worker": 1.5, "policy": {"gpus_per_worker": 1}, "groups.main": {"gpus_per_node": 8}},
        "rollout.gpus_per_worker",
        "whole number",
    ),
    "CPU tensor parallel on GPU": (
        {
            "rollout.gpus_per_worker": 1,
            "rollout.tensor_parallel": 2,
            "policy": {"gpus_per_worker": 1},
            "groups.main": {"gpus_per_node": 8},
        },
        "rollout.tensor_parallel",
        "gpus_per_worker",
    ),
    "GPU engines, CPU policy": (
        {"rollout.gpus_per_worker": 1, "groups.main": {"gpus_per_node": 8}},
        "rollout.transport",
        "policy.gpus_per_worker is 0",
    ),
    "nccl on CPU": ({"rollout.transport": "nccl"}, "rollout.transport", "gloo"),
    "gloo on GPU": (
        {"rollout.transport": "gloo", "rollout.gpus_per_worker": 1, "groups.main": {"gpus_per_node": 8}},
        "rollout.transport",
        "nccl or ipc",
    ),
    "flash attention on CPU": ({"model.attention": "flash_attention_2"}, "model.attention", "needs GPUs"),
    "top-p": ({"rollout.top_p": 0.9}, "rollout.top_p", "the very distribution"),
    "top-k through the engine": ({"rollout.engine": {"top_k": 5}}, "rollout.engine.top_k", "the very distribution"),
    "minimum length": ({"rollout.engine": {"min_tokens": 5}}, "rollout.engine.min_tokens", "end-of-sequence"),
    "repetition penalty": ({"rollout.repetition_penalty": 1.2}, "rollout.repetition_penalty", "the very distribution"),
    "engine over machines": ({"rollout.engine": {"nnodes": 2}}, "rollout.engine.nnodes", "stays within one machine"),
    "layers over machines": (
        {"rollout.engine": {"pipeline_parallel_size": 2}},
        "rollout.engine.pipeline_parallel_size",
        "raise rollout.workers",
    ),
    "unknown engine argument": ({"rollout.engine": {"max_num_seq": 4}}, "rollout.engine.max_num_seq", "max_num_seqs?"),
    "engine's share of a GPU": (
        {"rollout.engine": {"gpu_memory_utilization": 90}},
        "rollout.engine.gpu_memory_utilization",
        "at most 1, not 90",
    ),
    "engine's cache": (
        {"rollout.engine": {"kv_cache_memory_bytes": "4G"}},
        "rollout.engine.kv_cache_memory_bytes",
        "bytes, not '4G'",
    ),
    "engine argument of ours": ({"rollout.engine": {"dtype": "auto"}}, "rollout.engine.dtype", "model.dtype"),
    "secret in the config": ({"rollout.engine": {"hf_token": "x"}}, "rollout.engine.hf_token", "environment"),
    "DeepSpeed setting of ours": (
        {"policy.deepspeed": {"optimizer": {}}},
        "policy.deepspeed.optimizer",
        "learning_rate",
    ),
    "ZeRO stage twice": (
        {"policy.deepspeed": {"zero_optimization": {"stage": 2}}},
        "policy.deepspeed.zero_optimization.stage",
        "zero_stage",
    ),
    "unknown DeepSpeed setting": (
        {"policy.deepspeed": {"zero_optimisation": {"round_robin_gradients": True}}},
        "policy.deepspeed.zero_optimisation",
        "not a setting of DeepSpeed. Perhaps you meant zero_optimization?",
    ),
    "DeepSpeed setting one level too high": (
        {"critics.value.deepspeed": {"offload_optimizer": {"device": "cpu"}}},
        "critics.value.deepspeed.offload_optimizer",
        "belongs under zero_optimization",
    ),
    "nested DeepSpeed setting": (
        {"policy.deepspeed": {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}}},
        "policy.deepspeed.zero_optimization.offload_optimizer.devise",
        "not a setting of DeepSpeed's offload_optimizer. Perhaps you meant device?",
    ),
    "name in a table of DeepSpeed": (
        {"policy.deepspeed": {"data_types": {"grad_accum_type": "fp32"}}},
        "policy.deepspeed.data_types.grad_accum_type",
        "grad_accum_dtype?",
    ),
    "number in place of a DeepSpeed setting": (
        {"policy.deepspeed": {"zero_optimization": {3: {"device": "cpu"}}}},
        "policy.deepspeed.zero_optimization.3",
        "not a setting of DeepSpeed's zero_optimization",
    ),
    "DeepSpeed section as a value": (
        {"policy.deepspeed": {"zero_optimization": True}},
        "policy.deepspeed.zero_optimization",
        "a section of settings, not True",
    ),
    "betas": ({"policy.betas": [0.9, 1.0]}, "policy.betas.1", "less than 1, not 1.0"),
    "reward names twice": ({"rewards.1.name": "preference"}, "rewards.1.name", "also names rewards.0"),
    "penalty of one model": (
        {"rewards.0.disagreement_penalty": 1.0},
        "rewards.0.disagreement_penalty",
        "cannot disagree with itself",
    ),
    "negative penalty": ({"rewards.0.disagreement_penalty": -1}, "rewards.0.disagreement_penalty", "or equal to 0"),
    "member twice": ({"rewards.0.ensemble": ["a/b", "a/b"]}, "rewards.0.ensemble.1", "a/b is a member already"),
    "member is missing": ({"rewards.0.ensemble": ["./none"]}, "rewards.0.ensemble.0", "no such directory: ./none"),
    "function without a name": ({"rewards.1.function": "rules.py"}, "rewards.1.function", "file.py:name"),
    "function file is missing": ({"rewards.1.function": "rule.py:f"}, "rewards.1.function", "no such file: rule.py"),
    "function is not in the file": ({"rewards.1.function": "rules.py:f"}, "rewards.1.function", "no function f"),
    "adaptive KL without a start": (
        {"algorithm.kl": {"target": 6, "coefficient": 0}},
        "algorithm.kl.target",
        "coefficient is 0",
    ),
    "critic warm-up is the whole run": (
        {"algorithm.critic_warmup_steps": 100},
        "algorithm.critic_warmup_steps",
        "none of 100 steps",
    ),
    "no critic": ({"critics": {}}, "critics", "at least one"),
    "replay and record": ({"rollout.replay": "prompts.jsonl", "rollout.record": "b"}, "rollout.record", "replayed"),
    "replay and deterministic": (
        {"rollout.replay": "prompts.jsonl", "rollout.deterministic": True},
        "rollout.deterministic",
        "no effect under replay",
    ),
    "replay file is missing": ({"rollout.replay": "none.jsonl"}, "rollout.replay", "no such file"),
    "output is a file": ({"output": "rules.py"}, "output", "rules.py is a file, and output names a folder"),
    "output is below a file": (
        {"output": "rules.py/a/run"},
        "output",
        "cannot write to rules.py/a/run: rules.py is a file, and output names a folder",
    ),
    "no address": ({"cluster.address": "nonsense"}, "cluster.address", "must be host:port as `ray start --head`"),
    "data file is missing": ({"data.path": "prompt.jsonl"}, "data.path", "no such file or directory: prompt.jsonl"),
    "no file matches": ({"data.path": "shards/*.jsonl"}, "data.path", "no file matches"),
    "model directory is missing": ({"model.path": "./modle"}, "model.path", "no such directory: ./modle"),
    "model directory is empty": ({"model.path": "."}, "model.path", "no config.json"),
    "critic directory is missing": ({"critics.value.path": "/none/x"}, "critics.value.path", "no such directory"),
}


@pytest.fixture
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the test fail if a job starts."""
    monkeypatch.setattr(cli.importlib, "import_module", _only_config(cli.importlib.import_module))


def _only_config(real: Callable[[str], Any]) -> Callable[[str], Any]:
    def load(name: str) -> Any:
        assert name.startswith("rlhf_ray.config"), f"{name} was imported for a bad config"
        return real(name)

    return load


def _snapshot(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_one_line_names_file_line_and_key(
    name: str, write_config: Any, workplace: Path, capsys: pytest.CaptureFixture[str], no_job: None
) -> None:
    changes, key, words = CASES[name]
    path = write_config(changes)
    before = _snapshot(workplace)

    code = cli.main(["ppo", path.name])

    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("rlhf: config.yaml")
    assert f" {key}: " in lines[0]
    assert words in lines[0]
    assert "Traceback" not in captured.err + captured.out
    assert _snapshot(workplace) == before


def test_valid_config_loads(write_config: Any) -> None:
    config = load_job("ppo", [str(write_config({}))])
    assert config.rewards[1].function == "rules.py:length"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ppo", "confg.yaml"], "confg.yaml: no such file. Perhaps you meant config.yaml?"),
        (["ppo", "model"], "model: cannot be read: Is a directory"),
        (["ppo", "nowhere/config.yaml"], "there is no directory nowhere"),
        (["pop", "config.yaml"], "Perhaps you meant ppo?"),
        (["ppo", "--steps", "3"], "the config file comes first"),
        (["ppo", "config.yaml", "--stepz", "3"], "--stepz: unknown key. Perhaps you meant --steps?"),
        (["ppo", "config.yaml", "--policy.learning-rat", "3"], "Perhaps you meant --policy.learning_rate?"),
        (
            ["ppo", "config.yaml", "--rollout.top_p", "0.9"],
            "--rollout.top_p: unknown key: not in policy-",
        ),
        (["ppo", "config.yaml", "--learning_rate", "1"], "unknown key here. Perhaps you meant --policy.learning_rate?"),
        (["ppo", "config.yaml", "--zzz", "1"], "--zzz: unknown key. Keys here: output, seed, "),
        (["ppo", "config.yaml", "--steps.zzz", "1"], "--steps.zzz: unknown key"),
        (["ppo", "config.yaml", "--steps"], "--steps: needs a value"),
        (["ppo", "config.yaml", "--steps", "many"], "--steps: input should be a valid integer"),
        (["ppo", "config.yaml", "--steps", "[1"], "--steps: not a YAML value"),
        (["ppo", "config.yaml", "--data.path", "*.nothing"], "--data.path: no file matches *.nothing"),
        (["ppo", "config.yaml", "--data.path", "[a-"], "--data.path: "),
        (["ppo", "config.yaml", "--data.path", "/dev/null"], "--data.path: /dev/null is a device; write the rows to"),
        (["ppo", "config.yaml", "steps=3"], "overrides are written --key value"),
        (["ppo", "config.yaml", "--rewards.5.weight", "3"], "the list has 2 items"),
        (["ppo", "config.yaml", "--output", "rules.py"], "--output: rules.py is a file, and output names a folder"),
        (["ppo", "config.yaml", "--algorithm.kl", "0.1"], "--algorithm.kl: must be a section (its keys: coefficient"),
        (["ppo", "config.yaml", "--cluster.address", "head:x"], "--cluster.address: must be host:port"),
        (
            ["ppo", "config.yaml", "--rewards.0.function", "rules.py:length"],
            "--rewards.0.function: is a key of kind function, but the kind here is model",
        ),
        (["ppo", "config.yaml", "--policy.on", "gpu"], "--policy.on: no group is named 'gpu'"),
    ],
)
def test_bad_command_lines(
    arguments: list[str], words: str, write_config: Any, capsys: pytest.CaptureFixture[str], no_job: None
) -> None:
    write_config({})
    assert cli.main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert words in lines[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: 1\nsteps: 2\n", "config.yaml:2: steps: given twice, first on line 1"),
        ("policy:\n  workers: 1\n  workers: 2\n", "config.yaml:3: policy.workers: given twice, first on line 2"),
        ("steps: [1\n", "not valid YAML"),
        ("- a\n- b\n", "holds a list"),
        ("steps: !!python/object:os.system x\n", "not valid YAML"),
    ],
)
def test_files_that_are_no_config(
    text: str, words: str, workplace: Path, capsys: pytest.CaptureFixture[str], no_job: None
) -> None:
    (workplace / "config.yaml").write_text(text)
    assert cli.main(["ppo", "config.yaml"]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "file", "meant"),
    [
        ("ppo", "dpo", "rlhf dpo"),
        ("sft", "ppo", "rlhf ppo"),
        ("ppo", "sft", "rlhf sft and "),
    ],
)
def test_a_config_of_another_verb_is_one_line(
    verb: str, file: str, meant: str, capsys: pytest.CaptureFixture[str], no_job: None
) -> None:
    path = EXAMPLES / f"{file}.yaml"
    assert cli.main([verb, str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"rlhf: {path}: a config for {meant}")
    assert f"not for rlhf {verb};" in line


def test_a_mistake_in_a_config_of_this_verb_keeps_its_line(
    write_config: Any, capsys: pytest.CaptureFixture[str], no_job: None
) -> None:
    # Without rewards these keys are those of rlhf feedback, and the mistake is PPO's all the same.
    write_config({"rewards": ..., "prompts_per_step": 1, "minibatches": 1})
    assert cli.main(["ppo", "config.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "rewards: needs at least one source" in line


@pytest.mark.parametrize(
    ("key", "value", "closed"),
    [
        ("model.path", "closed/model", "closed/model"),
        ("data.path", "closed/prompts.jsonl", "closed/prompts.jsonl"),
        ("rewards.1.function", "closed/rules.py:length", "closed/rules.py"),
        ("output", "closed/run", "closed/run/config.yaml"),
    ],
)
def test_a_path_behind_a_folder_that_is_closed_to_the_user(
    key: str,
    value: str,
    closed: str,
    write_config: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    no_job: None,
) -> None:
    write_config({key: value})
    real = Path.stat

    def stat(path: Path, **options: bool) -> Any:
        # As the system answers anybody but root, who may run the tests.
        if path.parts[:1] == ("closed",):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert cli.main(["ppo", "config.yaml"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert f" {key}: no permission for {closed};" in line


def test_roles_that_do_not_fit_together(write_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config({"rollout.cpus_per_worker": 1.5})
    assert cli.main(["ppo", str(path)]) == 2
    assert "reference: worker 1 of 1 does not fit group 'main'" in capsys.readouterr().err


def test_several_mistakes_are_all_shown(write_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config({"stepz": 3, "policy.zero_stage": 9})
    assert cli.main(["ppo", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_line_numbers_are_those_of_the_keys(write_config: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config({"policy.zero_stage": 9})
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "zero_stage" in text)
    cli.main(["ppo", str(path)])
    assert f"config.yaml:{line}: policy.zero_stage" in capsys.readouterr().err

"""Bad input of every verb, told by the config alone: one line, exit code 2, nothing left behind, no job imported."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.config.reading.documents import DEEPEST, LARGEST_FILE, MOST_VALUES

FUNCTION = {"kind": "function", "function": "rules.py:length"}
ROWS = {"path": "rows.jsonl"}
MODEL = {"path": "model"}
CONFIGS: dict[str, dict[str, Any]] = {
    "sft": {"output": "run", "model": MODEL, "data": ROWS},
    "reward": {"output": "run", "model": MODEL, "data": ROWS},
    "dpo": {"output": "run", "model": MODEL, "data": ROWS},
    "ppo": {"output": "run", "model": MODEL, "data": ROWS, "rewards": [FUNCTION]},
    "feedback": {"output": "run", "model": MODEL, "data": ROWS},
    "generate": {"output": "out.jsonl", "model": MODEL, "data": ROWS},
    "score": {"output": "out.jsonl", "data": ROWS, "rewards": [FUNCTION]},
    "evaluate": {"output": "run", "models": {"one": MODEL, "two": MODEL}, "data": ROWS, "rewards": [FUNCTION]},
    "iterate": {
        "output": "run",
        "model": "model",
        "prompts": ROWS,
        "prompts_per_round": 4,
        "labels": {"kind": "sources", "rewards": [FUNCTION]},
        "generate": "a.yaml",
        "reward": "a.yaml",
        "ppo": "a.yaml",
        "evaluate": "a.yaml",
    },
    "data": {"output": "run", "sources": [{"kind": "files", **ROWS}]},
    "label": {"store": "labels.db", "answers": {"kind": "file", **ROWS}},
    "compare": {"store": "labels.db", "a": {"kind": "file", **ROWS}, "b": {"kind": "file", **ROWS}},
}
LONG = "n" * 300
HUGE = 10**30

VALUES: list[tuple[str, str, Any, str]] = [
    # verb, key, value, words of the line
    ("sft", "trainer.learning_rate", float("inf"), "finite number, not inf"),
    ("sft", "trainer.learning_rate", float("nan"), "finite number, not nan"),
    ("sft", "trainer.learning_rate", 5.0, "less than or equal to 1, not 5.0"),
    ("sft", "trainer.learning_rate", "fast", "valid number, not 'fast'"),
    ("sft", "trainer.learning_rate", 1e-300, "0 to float32"),
    ("sft", "trainer.epsilon", 0.0, "greater than 0, not 0.0"),
    ("sft", "trainer.epsilon", 1e-40, "0 to float32"),
    ("sft", "trainer.max_grad_norm", 1e-20, "lost beside other numbers"),
    ("sft", "trainer.weight_decay", float("-inf"), "finite"),
    ("sft", "trainer.warmup_steps", True, "valid integer, not True"),
    ("sft", "trainer.zero_stage", True, "is an integer, not True"),
    ("sft", "trainer.betas", [0.9], "missing"),
    ("sft", "trainer.betas", [0.9, float("nan")], "finite"),
    ("sft", "trainer.lora", {"r": HUGE}, "less than or equal to 8192"),
    ("sft", "trainer.lora", {"target_modules": ""}, "must not be empty"),
    ("sft", "trainer.lora", {"lora_alpha": float("inf")}, "finite"),
    ("sft", "trainer.deepspeed", {"zero_optimization": {"reduce_bucket_size": float("nan")}}, "finite number, not nan"),
    ("sft", "epochs", "1", "valid number, not '1'"),
    ("sft", "epochs", 1e300, "less than or equal to"),
    ("sft", "batch_size", 8.0, "valid integer, not 8.0"),
    ("sft", "tokens_per_microbatch", HUGE, "less than or equal to 10000000"),
    ("sft", "data.max_tokens", "2048", "valid integer, not '2048'"),
    ("sft", "data.bad_rows", float("nan"), "finite"),
    ("sft", "data.shuffle", 1, "valid boolean, not 1"),
    ("sft", "data.shuffle", "no", "valid boolean, not 'no'"),
    ("sft", "data.path", "~nouser/rows.jsonl", "no user 'nouser'"),
    ("sft", "data.path", LONG, "longer than a file's can be"),
    ("sft", "data.path", "d/" * 3000, "longer than a path can be"),
    ("sft", "data.path", "", "must not be empty"),
    ("sft", "data.path", 3, "valid string, not 3"),
    ("sft", "seed", -1, "greater than or equal to 0"),
    ("sft", "seed", 2**31, "less than or equal to 2147483647"),
    ("sft", "seed", False, "valid integer, not False"),
    ("sft", "output", "", "must not be empty"),
    ("sft", "output", "~nouser/run", "no user 'nouser'"),
    ("sft", "output", LONG, "longer than a file's can be"),
    ("sft", "model.path", "~nouser/model", "no user 'nouser'"),
    ("sft", "model.path", LONG, "longer than a file's can be"),
    ("sft", "model.path", "list", "holds a list, but a model is described by an object"),
    ("sft", "model.path", "broken", "is not JSON"),
    ("sft", "model.chat_template", "", "must not be empty"),
    ("sft", "model.tokenizer", LONG, "longer than a file's can be"),
    ("sft", "model.trust_remote_code", "true", "valid boolean, not 'true'"),
    ("sft", "checkpoint.keep", 0, "greater than 0"),
    ("sft", "checkpoint.every_steps", float("inf"), "valid integer"),
    ("sft", "tracking.tensorboard", "on", "valid boolean"),
    ("sft", "tracking.name", "", "must not be empty"),
    ("sft", "tracking.samples_per_step", HUGE, "less than or equal to 10000"),
    ("sft", "cluster.deadlines.start_seconds", float("inf"), "finite"),
    ("sft", "cluster.deadlines.call_seconds", 1e9, "less than or equal to 2000000"),
    ("sft", "cluster.deadlines.transfer_seconds", 0, "greater than or equal to 0.001"),
    ("sft", "groups", {"main": {"nodes": HUGE}}, "less than or equal to 100000"),
    ("sft", "groups", {"main": {"cpus_per_node": float("nan")}}, "finite"),
    ("sft", "groups", {"main": {"gpus_per_node": 1e-6}}, "Ray counts in parts of 0.0001"),
    ("sft", "groups", {"": {}}, "a text that is not empty"),
    ("sft", "groups", {1: {}}, "a text that is not empty, not 1"),
    ("reward", "members", True, "valid integer, not True"),
    ("reward", "centering_coefficient", float("inf"), "finite"),
    ("reward", "cost", {"regularisation": float("nan")}, "finite"),
    ("reward", "loss", "", "log_sigmoid"),
    ("dpo", "loss.beta", float("inf"), "finite"),
    ("dpo", "loss.beta", True, "valid number, not True"),
    ("dpo", "loss.weights", [float("nan")], "finite"),
    ("dpo", "loss.divergence_alpha", float("-inf"), "finite"),
    ("dpo", "loss.simpo_margin", 1e300, "less than or equal to"),
    ("dpo", "loss.discopop_temperature", 1e-300, "0.0001"),
    ("dpo", "loss.reference_free", 1, "valid boolean"),
    ("dpo", "reference_cache", "~nouser/cache", "no user 'nouser'"),
    ("ppo", "steps", True, "valid integer, not True"),
    ("ppo", "steps", 1e3, "valid integer, not 1000.0"),
    ("ppo", "samples_per_prompt", 100_000, "less than or equal to 16384"),
    ("ppo", "rollout.temperature", 1e-300, "greater than or equal to 0.01"),
    ("ppo", "rollout.temperature", float("inf"), "finite"),
    ("ppo", "rollout.stop", [""], "must not be empty"),
    ("ppo", "rollout.stop", "END", "valid list, not 'END'"),
    ("ppo", "rollout.max_new_tokens", HUGE, "less than or equal to"),
    ("ppo", "rollout.bucket_megabytes", float("inf"), "finite"),
    ("ppo", "rollout.engine", {"max_num_seqs": float("nan")}, "max_num_seqs: must be a finite number"),
    ("ppo", "rollout.engine", {"compilation_config": {"x": [float("inf")]}}, "must be a finite number"),
    ("ppo", "rollout.engine", {1: 2}, "a text that is not empty, not 1"),
    ("ppo", "rollout.record", LONG, "longer than a file's can be"),
    ("ppo", "algorithm.kl.coefficient", float("inf"), "finite"),
    ("ppo", "algorithm.kl.target", 1e-300, "lost beside other numbers"),
    ("ppo", "algorithm.kl.horizon", 0.5, "greater than or equal to 1"),
    ("ppo", "algorithm.clip_range", float("nan"), "finite"),
    ("ppo", "algorithm.dual_clip", float("inf"), "finite"),
    ("ppo", "algorithm.reward_baseline", float("nan"), "finite"),
    ("ppo", "algorithm.overlong_penalty", [10, float("inf")], "finite"),
    ("ppo", "algorithm.off_policy_bounds", [0, 1, 2], "at most 2"),
    ("ppo", "algorithm.max_staleness", False, "integer"),
    ("ppo", "algorithm.lagrangian", {"cost_limit": float("nan")}, "finite"),
    ("ppo", "rewards", [{**FUNCTION, "weight": float("nan")}], "finite"),
    ("ppo", "rewards", [{**FUNCTION, "timeout_seconds": float("inf")}], "finite"),
    ("ppo", "rewards", [{**FUNCTION, "function": "~nouser/rules.py:f"}], "no user 'nouser'"),
    ("ppo", "rewards", [{**FUNCTION, "name": ""}], "must not be empty"),
    ("ppo", "policy.threads", 10_000, "less than or equal to 1024"),
    ("ppo", "policy.workers", HUGE, "less than or equal to 100000"),
    ("ppo", "policy.ema_decay", float("nan"), "finite"),
    ("ppo", "critics", {"": {}}, "a text that is not empty"),
    ("ppo", "evaluation.every_steps", 2.5, "valid integer, not 2.5"),
    ("feedback", "minibatches", True, "is an integer, not True"),
    ("feedback", "reward_range", [float("-inf"), 0], "finite"),
    ("feedback", "replay", LONG, "longer than a file's can be"),
    ("generate", "sampling.top_p", float("nan"), "finite"),
    ("generate", "sampling.top_k", 2.0, "valid integer, not 2.0"),
    ("generate", "sampling.greedy", "yes", "valid boolean"),
    ("generate", "output", "", "must not be empty"),
    ("generate", "samples_per_prompt", HUGE, "less than or equal to 16384"),
    ("generate", "safety", {"cost": FUNCTION, "threshold": float("nan")}, "finite"),
    ("generate", "seed", 1.5, "valid integer, not 1.5"),
    ("score", "batch_size", "64", "valid integer, not '64'"),
    ("score", "output", "~nouser/out.jsonl", "no user 'nouser'"),
    ("score", "rewards", [{**FUNCTION, "failed_scores": float("nan")}], "finite"),
    ("score", "rewards", None, "valid list, not None"),
    ("evaluate", "models", {"": MODEL}, "a text that is not empty"),
    ("evaluate", "models", {"one": {"path": LONG}}, "longer than a file's can be"),
    ("evaluate", "models", {"one": {**MODEL, "run": "~nouser/run"}}, "no user 'nouser'"),
    ("evaluate", "judges", [{"kind": "reward", "name": "j", "tie_margin": float("inf")}], "finite"),
    ("evaluate", "judges", [{"kind": "people", "name": "j", "path": ""}], "must not be empty"),
    ("evaluate", "seed", -3, "greater than or equal to 0"),
    ("iterate", "rounds", True, "valid integer, not True"),
    ("iterate", "model", LONG, "longer than a file's can be"),
    ("iterate", "ppo", "", "must not be empty"),
    ("iterate", "evaluate", "~nouser/evaluate.yaml", "no user 'nouser'"),
    ("iterate", "labels", {"kind": "people", "path": LONG}, "longer than a file's can be"),
    ("iterate", "prompts_per_round", HUGE, "less than or equal to"),
    ("data", "processes", HUGE, "less than or equal to 100000"),
    ("data", "processes", 100_000, "100000, but this machine has "),
    ("data", "sources", [{"kind": "files", "path": "~nouser/x"}], "no user 'nouser'"),
    ("data", "sources", [{"kind": "http", "name": LONG, "url": "http://host/rows"}], "names a file"),
    ("data", "splits", {LONG: {"share": 1}}, "cannot name a file here"),
    ("data", "splits", {"train": {"share": float("nan")}}, "finite"),
    ("data", "sample", {"shares": {"chat": float("inf")}}, "finite"),
    ("data", "near_prompts", float("nan"), "finite"),
    ("data", "quality", {"phrases": [""]}, "must not be empty"),
    ("data", "output", LONG, "longer than a file's can be"),
    ("label", "store", LONG, "longer than a file's can be"),
    ("label", "store", "~nouser/labels.db", "no user 'nouser'"),
    ("label", "token_file", "~nouser/token", "no user 'nouser'"),
    ("label", "port", True, "valid integer, not True"),
    ("label", "lease_minutes", float("inf"), "finite"),
    ("label", "seed", -1, "greater than or equal to 0"),
    ("label", "host", "", "must not be empty"),
    ("compare", "export", "~nouser/out.jsonl", "no user 'nouser'"),
    ("compare", "overlap", float("nan"), "finite"),
    ("compare", "a", {"kind": "file", "path": LONG}, "longer than a file's can be"),
    ("compare", "overlap_annotators", HUGE, "less than or equal to 1000"),
]

LINES: list[tuple[list[str], str]] = [
    ([""], "unknown verb ''"),
    (["PPO", "config.yaml"], "unknown verb 'PPO'. Perhaps you meant ppo?"),
    (["Evaluate", "config.yaml"], "Perhaps you meant evaluate?"),
    *(([verb], f"no config file is given: rlhf {verb} CONFIG.yaml") for verb in CONFIGS),
    *(([verb], f"nothing is given: rlhf {verb} ") for verb in ("plan", "submit", "convert", "merge", "plot")),
    (["ppo", "ppo.yaml", "--dry-run"], "--dry-run: `rlhf plan [VERB] CONFIG.yaml` shows"),
    (["ppo", "--dry-run", "ppo.yaml"], "--dry-run: `rlhf plan [VERB] CONFIG.yaml` shows"),
    (["sft", "sft.yaml", "--dry_run", "true"], "--dry_run: `rlhf plan"),
    (["ppo", "ppo.yaml", "--policy.lr", "1e-6"], "--policy.lr: unknown key. Perhaps you meant --policy.learning_rate?"),
    (["sft", "sft.yaml", "--lr", "1e-6"], "--lr: unknown key here. Perhaps you meant --trainer.learning_rate?"),
    (["sft", "sft.yaml", "--num_train_epochs", "3"], "Perhaps you meant --epochs?"),
    (["ppo", "ppo.yaml", "--rollout.n", "4"], "Perhaps you meant --samples_per_prompt?"),
    (["ppo", "ppo.yaml", "--rewards.NAME.path", "x"], "items of rewards go by number; the first is --rewards.0"),
    (["ppo", "ppo.yaml", "--rewards.-1.weight", "x"], "items of rewards go by number"),
    (["ppo", "ppo.yaml", "--rollout.engine", "&a [*a]"], "not a YAML value: an alias stands within what it names"),
    (["ppo", "ppo.yaml", "--rollout.engine", "[" * 500], f"not a YAML value: it has more than {DEEPEST} levels"),
    (["ppo", "ppo.yaml", "--steps", "9" * 5000], "not a YAML value: a number of 5000 digits"),
    (["ppo", "ppo.yaml", "--data.path", "a\0b"], "holds a NUL character"),
    (["ppo", "ppo.yaml", "--rollout.engine", '{x: "\\ud800"}'], "half of a character"),
    (["ppo", "~nouser/config.yaml"], "there is no user 'nouser'"),
    (["ppo", f"{LONG}.yaml"], "longer than a file's can be"),
    (["ppo", "x/" * 3000], "longer than a path can be"),
    (["ppo", "a\0b.yaml"], "holds a NUL character"),
    (["ppo", "/dev/null"], "a config is a file"),
    (["plan", "nothing.yaml"], "nothing.yaml: no such file"),
    (["plan", "--gpu_gib", ".nan", "ppo.yaml"], "--gpu_gib: input should be a finite number"),
    (["plan", "ppo.yaml", "--steps", "true"], "--steps: input should be a valid integer"),
    (["plan", "~nouser/ppo.yaml"], "there is no user 'nouser'"),
    (["submit", "--address", "xx", "ppo", "ppo.yaml"], "--address: is the dashboard's, such as http://"),
    (["submit", "--address", "http://head:99999", "ppo", "ppo.yaml"], "--address: is the dashboard's"),
    (["submit", "--address", "ftp://head:8265", "ppo", "ppo.yaml"], "--address: is the dashboard's"),
    (["submit", "--connect_seconds", ".inf", "ppo", "ppo.yaml"], "finite"),
    (["submit", "--working_dir", "~nouser", "ppo", "ppo.yaml"], "no user 'nouser'"),
    (["submit", "--name", "a b", "ppo", "ppo.yaml"], "--name: is made of"),
    (["convert", f"{LONG}.jsonl", "--output", "y.jsonl"], "longer than a file's can be"),
    (["convert", "rows.jsonl", "--output", "~nouser/y.jsonl"], "no user 'nouser'"),
    (["convert", "rows.jsonl", "--output", ""], "--output: must not be empty"),
    (["convert", "rows.jsonl", "--output", "y.jsonl", "--bad_rows", ".nan"], "finite"),
    (["convert", "a\0b", "--output", "y.jsonl"], "NUL"),
    (["merge", "~nouser/a", "--output", "y"], "no user 'nouser'"),
    (["merge", LONG, "--output", "y"], "longer than a file's can be"),
    (["merge", "model", "--output", LONG], "longer than a file's can be"),
    (["plot", "~nouser/run"], "no user 'nouser'"),
    (["plot", LONG], "longer than a file's can be"),
    (["plot", "a\0b"], "NUL"),
    (["runs", "~nouser/runs"], "no user 'nouser'"),
    (["runs", "--metrics", "loss", "."], "--metrics"),
    (["doctor", "--setup"], "--setup: needs a value"),
    (["doctor", "--dry-run"], "--dry-run: `rlhf plan"),
]

NINE = ", ".join(["*{0}"] * 9)
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{NINE.format(f'a{n - 1}')}]\n" for n in range(1, 10))
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{NINE.format(f'a{n - 1}')}]}}\n" for n in range(1, 10))
FILES: dict[str, tuple[str, str]] = {
    "alias bomb": (BOMB, f"more than {MOST_VALUES:,} values"),
    "merge bomb": (MERGED, f"more than {MOST_VALUES:,} values"),
    "many values": ("a: [" + "1," * (MOST_VALUES + 1) + "]", f"more than {MOST_VALUES:,} values"),
    "an alias within itself": ("a: &a [*a]", ":1: not valid YAML: an alias stands within what it names"),
    "an alias deep within itself": ("a: &a\n  b:\n    c: *a", ":1: not valid YAML: an alias stands within"),
    "an alias of nothing": ("a: *b", "undefined alias"),
    "deep lists": ("a: " + "[" * 10_000 + "]" * 10_000, f"more than {DEEPEST} levels"),
    "deep mappings": ("{a: " * 1000, f"more than {DEEPEST} levels"),
    "deep blocks": ("\n".join(" " * depth + "a:" for depth in range(300)), f"more than {DEEPEST} levels"),
    "a large file": ("a: " + "x" * LARGEST_FILE, f"but a config has at most {LARGEST_FILE:,}"),
    "a long number": ("steps: " + "9" * 5000, ":1: not valid YAML: a number of 5000 digits"),
    "a tag of integers": ("steps: !!int x", "not valid YAML"),
    "a tag of dates": ("steps: !!timestamp 2026-99-99", "not valid YAML"),
    "a list as key": ("? [a]\n: b", "a key is a plain text, not a list"),
    "merging a number": ("<<: 3", "not valid YAML"),
    "two documents": ("steps: 1\n---\nsteps: 2", "another document"),
    "NUL": ("steps: \0", "not valid YAML"),
    "a plain text": ("hello", "holds a str, but a config is a mapping"),
    "nothing but a number": ("3", "holds a int, but a config is a mapping"),
    "no end of a text": ("steps: 'x", "not valid YAML"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name, description in (("model", "{}"), ("list", "[]"), ("broken", "{")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(description)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hello"}\n')
    (tmp_path / "rules.py").write_text("def length(prompts, completions, **columns):\n    return [1.0]\n")
    (tmp_path / "a.yaml").write_text("{}")
    real = cli.importlib.import_module

    def only_config(name: str) -> Any:
        assert name.startswith("rlhf_ray.config") or name in {cli.TOOLS[verb].module for verb in ("plan", "submit")}, (
            f"{name} was imported for bad input that the config alone tells"
        )
        return real(name)

    monkeypatch.setattr(cli.importlib, "import_module", only_config)
    return tmp_path


def _write(folder: Path, verb: str, key: str = "", value: Any = None) -> None:
    config: Any = copy.deepcopy(CONFIGS[verb])
    here, *steps = config, *filter(None, key.split("."))
    for step in steps[:-1]:
        here = here.setdefault(step, {})
    if steps:
        here[steps[-1]] = value
    (folder / f"{verb}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def _refused(folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command shows."""
    before = set(folder.rglob("*"))
    began = time.process_time()
    assert cli.main(arguments) == 2
    assert time.process_time() - began < 6
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.splitlines()
    assert line.startswith("rlhf: ")
    assert set(folder.rglob("*")) == before
    return line


@pytest.mark.parametrize(("verb", "key", "value", "words"), VALUES)
def test_values(verb: str, key: str, value: Any, words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(folder, verb, key, value)
    line = _refused(folder, [verb, f"{verb}.yaml"], capsys)
    assert words in line
    assert line.startswith(f"rlhf: {verb}.yaml:")
    assert f" {key}" in line


@pytest.mark.parametrize(("arguments", "words"), LINES)
def test_command_lines(arguments: list[str], words: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(folder, "ppo")
    _write(folder, "sft")
    assert words in _refused(folder, arguments, capsys)


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = FILES[name]
    (folder / "ppo.yaml").write_text(text)
    assert words in _refused(folder, ["ppo", "ppo.yaml"], capsys)


@pytest.mark.parametrize("verb", CONFIGS)
def test_what_the_cases_change_is_right(verb: str, folder: Path) -> None:
    from rlhf_ray.config.reading.verbs import load_job

    _write(folder, verb)
    load_job(verb, [f"{verb}.yaml"])

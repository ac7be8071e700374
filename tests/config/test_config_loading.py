from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.documents import parse_value, read_document
from rlhf_ray.config.reading.loading import dump_config, load_config
from rlhf_ray.config.reading.verbs import deduce_verb


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-6", 1e-6),
        ("1.5E3", 1500.0),
        ("-2e+1", -20.0),
        ("2", 2),
        ("0.5", 0.5),
        (".5", 0.5),
        ("true", True),
        ("on", "on"),
        ("no", "no"),
        ("null", None),
        ("v1.2", "v1.2"),
        ("1:30", "1:30"),
        ("2026-11-30", "2026-11-30"),
        ("010", 10),
        ("0x10", 16),
        ("1_000", 1000),
        ("e5", "e5"),
        ("[0.9, 1e-3]", [0.9, 1e-3]),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_values_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    found = parse_value(text)
    assert found == value
    assert type(found) is type(value)


def test_a_key_beside_a_merged_one_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  x: 3\n")
    document = read_document(path)
    assert document.data["b"] == {"x": 3, "y": 2}
    assert document.lines["b", "x"] == 4


def test_lines_of_nested_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: 1\nb:\n  c: 2\n  d:\n    - e: 3\n    - f: 4\n")
    document = read_document(path)
    assert document.data == {"a": 1, "b": {"c": 2, "d": [{"e": 3}, {"f": 4}]}}
    assert document.lines["b", "d", 1, "f"] == 6
    assert document.where(("b", "d", 0, "unknown")) == f"{path}:5"


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["--policy.learning_rate", "1e-6"], lambda c: c.policy.learning_rate == 1e-6),
        (["--policy.learning-rate=1e-6"], lambda c: c.policy.learning_rate == 1e-6),
        (["--rewards.0.weight", "-2"], lambda c: c.rewards[0].weight == -2),
        (["--critics.value.learning_rate", "1e-5"], lambda c: c.critics["value"].learning_rate == 1e-5),
        (["--critics.cost-value.path", "policy"], lambda c: c.critics["cost-value"].path == "policy"),
        (["--rollout.engine.max-num-seqs", "64"], lambda c: c.rollout.engine == {"max_num_seqs": 64}),
        (["--rollout.engine.compilation_config.level", "0"], lambda c: "compilation_config" in c.rollout.engine),
        (["--rollout.deterministic"], lambda c: c.rollout.deterministic is True),
        (["--rollout.deterministic", "--steps", "3"], lambda c: c.rollout.deterministic and c.steps == 3),
        (["--rollout.stop", '["\\n\\n", "END"]'], lambda c: c.rollout.stop == ["\n\n", "END"]),
        (["--policy.betas", "[0.8, 0.9]"], lambda c: c.policy.betas == (0.8, 0.9)),
        (["--tracking.name", "2024"], lambda c: c.tracking.name == "2024"),
        (["--tracking.name", "null"], lambda c: c.tracking.name is None),
        (["--evaluation.data.path", "prompts.jsonl"], lambda c: c.evaluation.data.path == "prompts.jsonl"),
        (["--groups.main.gpus_per_node", "4"], lambda c: c.groups["main"].gpus_per_node == 4),
        (
            ["--rewards.2", "{kind: function, function: 'rules.py:length', name: more}"],
            lambda c: c.rewards[2].name == "more",
        ),
        (["--steps", "3", "--steps", "4"], lambda c: c.steps == 4),
    ],
)
def test_overrides_reach_everything(arguments: list[str], read: Any, write_config: Any) -> None:
    assert read(load_config(PPOConfig, write_config({}), arguments))


def test_override_replaces_the_value_of_the_file(write_config: Any) -> None:
    path = write_config({"policy.learning_rate": 5e-5, "policy.weight_decay": 0.1})
    config = load_config(PPOConfig, path, ["--policy.learning_rate", "1e-6"])
    assert (config.policy.learning_rate, config.policy.weight_decay) == (1e-6, 0.1)


def test_override_repairs_a_wrong_file(write_config: Any) -> None:
    path = write_config({"steps": "many", "model.path": ...})
    assert load_config(PPOConfig, path, ["--steps", "3", "--model.path", "model"]).steps == 3


def test_dump_loads_again_to_the_same_config(write_config: Any, tmp_path: Path) -> None:
    config = load_config(PPOConfig, write_config({"policy.betas": [0.8, 0.99], "rollout.engine": {"max_num_seqs": 3}}))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(PPOConfig, again) == config
    # Other YAML readers must agree too, although the key `on` is a switch to YAML 1.1.
    assert yaml.safe_load(dump_config(config))["policy"]["on"] == "main"


@pytest.mark.parametrize(
    ("name", "local"),
    [
        ("gpt2", False),
        ("Qwen/Qwen2.5-7B", False),
        ("./model", True),
        ("/models/x", True),
        ("outputs/sft/final", True),
        ("here/final", True),
    ],
)
def test_local_names(name: str, local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlhf_ray.config.checks.files import names_local_path

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert names_local_path(name) is local


def test_verb_is_deduced_from_the_keys(write_config: Any) -> None:
    assert deduce_verb(str(write_config({}))) == "ppo"

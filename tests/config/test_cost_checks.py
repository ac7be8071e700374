"""Safe RLHF: what its settings need of each other, and what contradicts them."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.loading import dump_config, load_config

COST: dict[str, Any] = {"rewards.1.measures": "cost"}
SAFE: dict[str, Any] = {**COST, "algorithm.lagrangian.cost_limit": 0.5}

CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (change of a valid config, key that the line names, words in the line)
    "unknown measure": ({"rewards.1.measures": "costs"}, "rewards.1.measures", "Perhaps you meant cost?"),
    "cost without a limit": (COST, "rewards.1.measures", "set it, such as `lagrangian: {cost_limit: 0}`"),
    "limit without a cost": ({"algorithm.lagrangian.window": 9}, "algorithm.lagrangian", "no source of costs"),
    "nothing but costs": ({**SAFE, "rewards.0.measures": "cost"}, "rewards", "at least one must measure reward"),
    "no critic of costs": ({**SAFE, "critics": {"value": {}}}, "critics", "add `cost: {}`"),
    "no critic of rewards": ({**SAFE, "critics": {"cost": {}}}, "critics", "given are: none"),
    "two critics of rewards": ({**SAFE, "critics": {"a": {}, "b": {}, "cost": {}}}, "critics", "given are: a, b"),
    "two critics without costs": ({"critics": {"value": {}, "other": {}}}, "critics", "given are: value, other"),
    "critic of costs without costs": ({"critics": {"value": {}, "cost": {}}}, "critics.cost", "leave it out"),
    "estimator without a critic": (
        {**SAFE, "algorithm.advantages": "grpo", "samples_per_prompt": 4},
        "algorithm.lagrangian.place",
        "set place: reward",
    ),
    "lambda that never moves": (
        {**SAFE, "algorithm.lagrangian.multiplier": 0},
        "algorithm.lagrangian.multiplier",
        "0 stays 0",
    ),
    "negative lambda": (
        {**SAFE, "algorithm.lagrangian.multiplier": -1},
        "algorithm.lagrangian.multiplier",
        "greater than or equal to 0",
    ),
    "lambda beyond its bound": (
        {**SAFE, "algorithm.lagrangian.multiplier": 6},
        "algorithm.lagrangian.multiplier",
        "above maximum, 5",
    ),
    "delay beyond the run": (
        {**SAFE, "steps": 5, "algorithm.lagrangian.delay_steps": 5},
        "algorithm.lagrangian.delay_steps",
        "all of 5 steps",
    ),
    "limit of shaping": (
        {**SAFE, "algorithm.lagrangian.place": "reward"},
        "algorithm.lagrangian.cost_limit",
        "no effect beside place: reward",
    ),
    "empty window": (
        {**SAFE, "algorithm.lagrangian.window": 0},
        "algorithm.lagrangian.window",
        "greater than 0",
    ),
    "cost model that is not there": (
        {**SAFE, "rewards.1": {"kind": "model", "path": "./costs", "name": "harm", "measures": "cost"}},
        "rewards.1.path",
        "no such directory",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_contradictions_end_in_one_line(name: str, refuses: Any) -> None:
    refuses(*CASES[name])


@pytest.mark.parametrize("verb", ["score", "evaluate"])
def test_costs_have_no_meaning_where_nothing_is_trained(
    verb: str, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    source = "{kind: function, function: 'rules.py:length', measures: cost}"
    models = "models: {one: {path: model}}\n" if verb == "evaluate" else ""
    (workplace / "job.yaml").write_text(f"output: out\ndata: {{path: rows.jsonl}}\nrewards: [{source}]\n{models}")
    assert cli.main([verb, "job.yaml"]) == 2
    assert "rewards.0.measures: cost has no meaning where nothing is trained" in capsys.readouterr().err


def test_costs_bring_their_critic(write_config: Any, tmp_path: Path) -> None:
    config = load_config(PPOConfig, write_config(SAFE))
    assert list(config.critics) == ["value", "cost"]
    assert {("critics", "value"), ("critics", "cost")} <= config.placements().keys()
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(PPOConfig, again) == config


@pytest.mark.parametrize("advantages", ["gae", "grpo"])
def test_shaping_needs_no_further_critic(advantages: str, write_config: Any) -> None:
    shaped = {**COST, "algorithm.lagrangian.place": "reward", "algorithm.lagrangian.multiplier": 0.5}
    config = load_config(
        PPOConfig, write_config({**shaped, "algorithm.advantages": advantages, "samples_per_prompt": 2})
    )
    assert list(config.critics) == (["value"] if advantages == "gae" else [])


def test_each_critic_starts_from_a_model_of_what_it_learns(write_config: Any, workplace: Path) -> None:
    (workplace / "harm").mkdir()
    (workplace / "harm" / "config.json").write_text("{}")
    harm = {"kind": "model", "path": "harm", "name": "harm", "measures": "cost"}
    preference = {"kind": "model", "path": "model", "name": "preference"}
    config = load_config(PPOConfig, write_config({**SAFE, "rewards": [harm, preference]}))
    assert config.critic_path("value") == "model"
    assert config.critic_path("cost") == "harm"
    of_function = load_config(PPOConfig, write_config({**SAFE, "model.path": "harm"}))
    assert of_function.critic_path("cost") == "harm", "without a cost model, the policy"
    assert of_function.critic_path("value") == "model"

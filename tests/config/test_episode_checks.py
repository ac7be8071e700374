"""Episodes with an environment: what their settings need, and what contradicts them."""

from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import cli
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.loading import dump_config, load_config

WORLD = """
class Guess:
    def reset(self, prompt, seed): ...
    def step(self, turn): ...
"""
GAME: dict[str, Any] = {"rollout.environment": {"kind": "python", "path": "guess.py:Guess"}}


def game(**changes: Any) -> dict[str, Any]:
    return {"rollout.environment": {"kind": "python", "path": "guess.py:Guess"} | changes}


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    # name: (change of a valid config, key that the line names, words in the line)
    "unknown kind": (game(kind="pythn"), "rollout.environment", "Perhaps you meant python?"),
    "no kind": ({"rollout.environment": {"path": "guess.py:Guess"}}, "rollout.environment", "one of python, tools"),
    "no class": ({"rollout.environment": {"kind": "python"}}, "rollout.environment.path", "missing: `file.py:Class`"),
    "a file alone": (game(path="guess.py"), "rollout.environment.path", "is written file.py:Class, not 'guess.py'"),
    "a module": (game(path="guess:Guess"), "rollout.environment.path", "is written file.py:Class"),
    "no such file": (game(path="gues.py:Guess"), "rollout.environment.path", "no such file: gues.py"),
    "no such class": (game(path="guess.py:Gess"), "rollout.environment.path", "has no class Gess; it defines: Guess"),
    "what is not installed": (game(path="bad.py:Guess"), "rollout.environment.path", "imports no_such_library"),
    "no Python": (game(path="broken.py:Guess"), "rollout.environment.path", "broken.py:1: SyntaxError"),
    "unknown key": (game(second=3), "rollout.environment.second", "Perhaps you meant rollout.environment.seconds?"),
    "no time": (game(seconds=0), "rollout.environment.seconds", "greater than or equal to 0.001"),
    "longer than a step may stand still": (
        {**game(seconds=900), "cluster.deadlines.call_seconds": 600},
        "rollout.environment.seconds",
        "900 is more than cluster.deadlines.call_seconds, 600",
    ),
    "more than all may fail": (game(failed_episodes=1.5), "rollout.environment.failed_episodes", "less than or equal"),
    "turns without an environment": ({"rollout.max_turns": 4}, "rollout.max_turns", "no effect without"),
    "turns' tokens without one": ({"rollout.max_turn_tokens": 4}, "rollout.max_turn_tokens", "no effect without"),
    "no turn": ({**GAME, "rollout.max_turns": 0}, "rollout.max_turns", "greater than or equal to 1"),
    "a turn longer than all": (
        {**GAME, "rollout.max_turn_tokens": 300},
        "rollout.max_turn_tokens",
        "300 is more than max_new_tokens, 256, which all turns share",
    ),
    "no room for the turns": (
        {**GAME, "rollout.max_turns": 6, "rollout.max_new_tokens": 10},
        "rollout.max_new_tokens",
        "10 has no room for max_turns 6",
    ),
    "the environment's own name": (
        {**GAME, "rewards.0.name": "environment"},
        "rewards.0.name",
        "names what rollout.environment gives",
    ),
    "nobody rewards": ({"rewards": []}, "rewards", "needs at least one source, or rollout.environment"),
}


def tools(**changes: Any) -> dict[str, Any]:
    return {"rollout.environment": {"kind": "tools", "file": "tools.py", "functions": ["add"]} | changes}


CASES |= {
    "no tool": (tools(functions=[]), "rollout.environment.functions", "at least 1"),
    "no such tool": (tools(functions=["add", "sub"]), "rollout.environment.functions.1", "has no function sub"),
    "no such file of tools": (tools(file="tool.py"), "rollout.environment.functions.0", "no such file: tool.py"),
    "tools that are no Python": (tools(file="tools"), "rollout.environment.file", "is a Python file"),
    "no name": (tools(functions=["add 1"]), "rollout.environment.functions.0", "is no name of a function"),
    "a tool twice": (tools(functions=["add", "add"]), "rollout.environment.functions.1", "add is there already"),
    "a key of the other kind": (tools(path="tools.py:add"), "rollout.environment.path", "is a key of kind python"),
    "tools reward nothing": ({**tools(), "rewards": []}, "rewards", "of kind tools rewards nothing"),
    "marks left out": (
        {**tools(), "rollout.skip_special_tokens": True},
        "rollout.skip_special_tokens",
        "marks of calls",
    ),
    "a result that nobody reads": ({**tools(), "rollout.max_turns": 1}, "rollout.max_turns", "set 2"),
}


@pytest.fixture(autouse=True)
def worlds(workplace: Path) -> None:
    (workplace / "guess.py").write_text(WORLD)
    (workplace / "tools.py").write_text("def add(a: int, b: int) -> int: ...")
    (workplace / "bad.py").write_text("import no_such_library" + WORLD)
    (workplace / "broken.py").write_text("class Guess\n")


@pytest.mark.parametrize("name", CASES)
def test_one_line_names_key_and_reason(name: str, refuses: Any) -> None:
    refuses(*CASES[name])


def test_an_environment_may_reward_alone(write_config: Any, tmp_path: Path) -> None:
    changes = {**GAME, "rewards": [], "rollout.max_turns": 4, "rollout.max_turn_tokens": 8}
    config = load_config(PPOConfig, write_config(changes))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(PPOConfig, again) == config
    assert config.rewards == []


def test_a_config_without_one_survives_its_own_dump(write_config: Any, tmp_path: Path) -> None:
    config = load_config(PPOConfig, write_config({}))
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(PPOConfig, again) == config


def test_costs_alone_need_an_environment(write_config: Any, refuses: Any) -> None:
    costs = {"rewards.0.measures": "cost", "rewards.1.measures": "cost", "algorithm.lagrangian.cost_limit": 0.5}
    refuses(costs, "rewards", "at least one must measure reward")
    assert load_config(PPOConfig, write_config({**costs, **GAME}))


def test_a_person_scores_no_episodes(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "feedback.yaml").write_text(
        "output: outputs/run\nmodel: {path: model}\ndata: {path: prompts.jsonl}\n"
        "rollout: {environment: {kind: python, path: 'guess.py:Guess'}, max_turns: 3}\n"
    )
    assert cli.main(["feedback", "feedback.yaml"]) == 2
    said = capsys.readouterr().err
    assert "rollout.environment: a person scores single answers here" in said
    assert "rollout.max_turns: a person scores single answers here" in said


@pytest.mark.parametrize("verb", ["generate", "evaluate"])
def test_other_jobs_know_no_environment(verb: str, workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (workplace / "job.yaml").write_text(
        "output: outputs/run\ndata: {path: prompts.jsonl}\n"
        + ("model: {path: model}\n" if verb == "generate" else "models: {one: {path: model}}\n")
        + "rollout: {environment: {kind: python, path: 'guess.py:Guess'}}\n"
    )
    assert cli.main([verb, "job.yaml"]) == 2
    assert "rollout.environment: unknown key" in capsys.readouterr().err

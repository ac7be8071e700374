"""`rlhf iterate`: which stages run, on what, in which order; with stages that write what the real ones would."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray import cli
from rlhf_ray.pipelines import rounds, stages
from rlhf_ray.pipelines.labelling import choose_prompts, rank_by_scores
from rlhf_ray.pipelines.stages import StageFailed
from tests.jobs.ppo_runs import write_config, write_rows
from tests.pipelines.people import rank_all


class Commands:
    """Stands in for the processes of `rlhf`: remembers each command and writes a plausible result."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str]]] = []
        self.fail_at: int | None = None

    def __call__(self, name: str, arguments: list[str]) -> int:
        verb, first, *rest = arguments
        settings = {key.removeprefix("--"): value for key, value in zip(rest[::2], rest[1::2], strict=True)}
        if self.fail_at == len(self.seen):
            self.fail_at = None
            raise StageFailed(f"stage {name}: rlhf {verb} ended by SIGKILL", 1)
        self.seen.append((name, settings))
        getattr(self, verb)(first, settings)
        return 5 << 20

    def generate(self, file: str, settings: dict[str, str]) -> None:
        prompts = read(Path(settings["data.path"]))
        rows = [
            {"prompt": row["prompt"], "completion": "x" * (index + 1)}
            for row in prompts
            for index in range(int(settings["samples_per_prompt"]))
        ]
        write_rows(Path(settings["output"]), rows)

    def score(self, file: str, settings: dict[str, str]) -> None:
        config = yaml.safe_load(Path(file).read_text())
        rows = read(Path(config["data"]["path"]))
        write_rows(Path(config["output"]), [row | {"reward": float(len(row["completion"]))} for row in rows])

    def reward(self, file: str, settings: dict[str, str]) -> None:
        (Path(settings["output"]) / "final").mkdir(parents=True)
        write_rows(Path(settings["output"]) / "metrics.jsonl", [{"step": 1, "eval_accuracy": 0.75}])

    def ppo(self, file: str, settings: dict[str, str]) -> None:
        (Path(settings["output"]) / "final").mkdir(parents=True)

    def merge(self, adapter: str, settings: dict[str, str]) -> None:
        Path(settings["output"]).mkdir()
        (Path(settings["output"]) / "config.json").write_text("{}")

    def evaluate(self, file: str, settings: dict[str, str]) -> None:
        number = int(Path(settings["output"]).parent.name.removeprefix("round_"))
        known = {"value": number + 0.5, "low": 0.0, "high": 1.0, "count": 3}
        figures = dict.fromkeys(("reward", "oracle", "kl", "length"), known)
        policy = figures | {"distinct_2": 0.5, "perplexity": None, "tax": None}
        summary = {
            "models": {"start": policy, "policy": policy},
            "win_rates": {"oracle": {"policy": {"outcome": {"rate": known}}}},
        }
        folder = Path(settings["output"])
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "comparison.html").write_text("")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(stages, "_outside", found)
    return found


def run(settings: dict[str, Any]) -> int:
    return cli.main(["iterate", str(write_config(Path("iterate.yaml"), settings))])


NAMES = ["collect", "score", "reward", "ppo", "evaluate"]


def test_each_round_goes_on_from_the_one_before(
    iteration: dict[str, Any], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(iteration) == 0
    assert [name for name, _ in commands.seen] == [f"round_0{number} {name}" for number in range(2) for name in NAMES]
    by_name = dict(commands.seen)
    assert by_name["round_00 collect"]["model.path"] == "start"
    assert by_name["round_01 collect"]["model.path"] == "rounds/round_00/ppo/final"
    assert by_name["round_01 ppo"]["model.path"] == "rounds/round_00/ppo/final"
    for number in range(2):
        ppo, evaluate = by_name[f"round_0{number} ppo"], by_name[f"round_0{number} evaluate"]
        assert ppo["rewards.0.path"] == evaluate["rewards.0.path"] == f"rounds/round_0{number}/reward/final"
        assert evaluate["models.policy.path"] == f"rounds/round_0{number}/ppo/final"
        assert evaluate["models.start.path"] == "start"
        assert ppo["seed"] == str(number), "rounds draw differently"
    first, second = (read(Path(f"rounds/round_0{number}/preferences.jsonl")) for number in range(2))
    assert len(first) == 3
    assert second[:3] == first, "preferences of earlier rounds are kept"
    assert second[0]["responses"] == ["xxx", "xx", "x"]
    figures = json.loads(Path("rounds/rounds.json").read_text())
    assert [row["oracle"] for row in figures] == [0.5, 1.5]
    assert figures[1]["rankings_used"] == 6
    assert figures[1]["reward_accuracy"] == 0.75
    assert figures[1]["win_rate/oracle"] == 1.5
    assert Path("rounds/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "Win rate" in Path("rounds/report.html").read_text()
    shown = capsys.readouterr().out
    assert "round_01 evaluate" in shown
    assert "Rounds: the policy against the first model" in shown


@pytest.mark.parametrize("stage", range(10))
def test_the_same_command_goes_on_at_any_stage(
    stage: int,
    iteration: dict[str, Any],
    commands: Commands,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounds, "draw", lambda folder, history: None)
    commands.fail_at = stage
    assert run(iteration) == 1
    name = f"round_0{stage // 5} {NAMES[stage % 5]}"
    assert f"stage {name}: " in capsys.readouterr().err, "the error names the stage"
    assert run(iteration) == 0
    assert [seen for seen, _ in commands.seen] == [f"round_0{r} {one}" for r in range(2) for one in NAMES]
    assert run(iteration | {"rounds": 3}) == 0, "rounds may be added"
    assert len(commands.seen) == 15


def test_policies_may_begin_anew_and_old_preferences_be_left_out(iteration: dict[str, Any], commands: Commands) -> None:
    assert run(iteration | {"policy_from": "start", "keep_preferences": False}) == 0
    by_name = dict(commands.seen)
    assert by_name["round_01 ppo"]["model.path"] == "start"
    assert by_name["round_01 collect"]["model.path"] == "rounds/round_00/ppo/final"
    assert len(read(Path("rounds/round_01/preferences.jsonl"))) == 3


def test_adapters_are_merged_on_the_way(
    iteration: dict[str, Any], commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reward(file: str, settings: dict[str, str]) -> None:
        Commands.reward(commands, file, settings)
        (Path(settings["output"]) / "final" / "adapter_config.json").write_text("{}")

    monkeypatch.setattr(commands, "reward", reward)
    assert run(iteration | {"rounds": 1}) == 0
    assert [name for name, _ in commands.seen][3] == "round_00 merge reward"
    assert dict(commands.seen)["round_00 ppo"]["rewards.0.path"] == "rounds/round_00/reward/merged"


def test_all_members_of_an_ensemble_judge(
    iteration: dict[str, Any], commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are adapters are merged first."""

    def reward(file: str, settings: dict[str, str]) -> None:
        Commands.reward(commands, file, settings)
        for number in (2, 3):
            (Path(settings["output"]) / "members" / str(number) / "final").mkdir(parents=True)
        (Path(settings["output"]) / "members" / "3" / "final" / "adapter_config.json").write_text("{}")

    monkeypatch.setattr(commands, "reward", reward)
    rewrite("reward", members=3)()
    rewrite("ppo", rewards=[{"kind": "model", "dtype": "float32", "disagreement_penalty": 1.0}])()
    assert run(iteration | {"rounds": 1}) == 0
    by_name = dict(commands.seen)
    assert by_name["round_00 merge reward/members/3"] == {"output": "rounds/round_00/reward/members/3/merged"}
    for stage in ("ppo", "evaluate"):
        settings = by_name[f"round_00 {stage}"]
        assert settings["rewards.0.path"] == "rounds/round_00/reward/final"
        others = [f"rounds/round_00/reward/members/{end}" for end in ("2/final", "3/merged")]
        assert json.loads(settings["rewards.0.ensemble"]) == others


def test_a_round_waits_for_people(
    iteration: dict[str, Any], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = iteration | {"rounds": 1, "labels": {"kind": "people", "path": "labels_{round}.jsonl"}}
    assert run(settings) == 3
    error = capsys.readouterr().err
    assert "stage round_00 label: round_00 waits for people" in error
    assert "rlhf label rounds/round_00/label.yaml --export labels_00.jsonl" in error
    page = yaml.safe_load(Path("rounds/round_00/label.yaml").read_text())
    assert page["answers"] == {"kind": "file", "path": "rounds/round_00/answers.jsonl", "version": "start"}
    row = {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [0, 1, 1], "annotator": "ann", "reason": "<b>"}
    write_rows(Path("labels_00.jsonl"), [row])
    assert run(settings) == 0
    assert [name for name, _ in commands.seen].count("round_00 collect") == 1
    assert read(Path("rounds/round_00/preferences.jsonl")) == [
        {key: row[key] for key in ("prompt", "responses", "ranks")}
    ]


def test_people_label_each_round_and_the_same_command_goes_on(
    iteration: dict[str, Any],
    commands: Commands,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = iteration | {"labels": {"kind": "people"}}
    for number in range(2):
        name = f"round_0{number}"
        assert run(settings) == 3
        told = capsys.readouterr().err
        assert f"rlhf label rounds/{name}/label.yaml" in told
        page, export = f"rounds/{name}/label.yaml", f"rounds/{name}/labels.jsonl"
        assert f"rlhf label {page} --export {export}" in told
        # They stop in the middle of it, and come back.
        assert rank_all(page, len, monkeypatch, most=1) == 1
        assert rank_all(page, len, monkeypatch) == 2
        assert rank_all(page, len, monkeypatch) == 0, "nothing is asked twice"
        assert cli.main(["label", page, "--export", export]) == 0
        labels = read(Path(export))
        assert {row["annotator"] for row in labels} <= {"anna", "博"}
        policy = "start" if number == 0 else "rounds/round_00/ppo/final"
        assert all(row["versions"] == [policy] * 3 for row in labels), "a label knows which policy it judged"
    assert run(settings) == 0
    assert [seen for seen, _ in commands.seen] == [
        f"round_0{number} {name}" for number in range(2) for name in NAMES if name != "score"
    ], "what was finished before people came is not repeated"
    for number in range(2):
        rankings = read(Path(f"rounds/round_0{number}/rankings.jsonl"))
        assert sorted(row["prompt"] for row in rankings) == sorted(
            row["prompt"] for row in read(Path(f"rounds/round_0{number}/prompts.jsonl"))
        )
        for row in rankings:
            assert [text for _, text in sorted(zip(row["ranks"], row["responses"], strict=True))] == ["xxx", "xx", "x"]
    assert [figures["rankings"] for figures in json.loads(Path("rounds/rounds.json").read_text())] == [3, 3]


def test_ranks_of_scores() -> None:
    def scored(*pairs: tuple[str, float | None], prompt: Any = "p") -> list[dict[str, Any]]:
        return [{"prompt": prompt, "completion": text, "reward": score} for text, score in pairs]

    [ranking] = rank_by_scores(scored(("a", 1.0), ("b", 3.0), ("c", 2.9), ("d", None), ("b", 0.0)), tie_margin=0.2)
    assert (ranking["responses"], ranking["ranks"]) == (["b", "c", "a"], [0, 0, 1])
    assert rank_by_scores(scored(("a", 1.0), ("b", 1.0)), 0.0) == [], "equal answers say nothing"
    chat = [{"role": "user", "content": "?"}]
    said = [
        {"prompt": chat, "completion": [{"role": "assistant", "content": t}], "reward": s}
        for t, s in (("x", 0.0), ("y", 1.0))
    ]
    [ranking] = rank_by_scores(said, 0.0)
    assert ranking == {"prompt": chat, "responses": ["y", "x"], "ranks": [0, 1]}


def test_each_prompt_comes_once_before_any_comes_again() -> None:
    rows = [{"prompt": str(number)} for number in range(7)]
    dealt = [row["prompt"] for number in range(7) for row in choose_prompts(rows, 3, number, seed=1)]
    for turn in range(3):
        assert sorted(dealt[7 * turn : 7 * turn + 7]) == sorted(row["prompt"] for row in rows)
    assert dealt[:7] != dealt[7:14]
    assert dealt[:3] == [row["prompt"] for row in choose_prompts(rows, 3, 0, seed=1)]


def rewrite(verb: str, **changes: Any) -> Callable[[], Any]:
    def write() -> None:
        file = Path(f"{verb}.yaml")
        write_config(file, yaml.safe_load(file.read_text()) | changes)

    return write


BAD: dict[str, tuple[dict[str, Any], Callable[[], Any], str]] = {
    "a stage without its file": ({"ppo": "none.yaml"}, lambda: None, "ppo: none.yaml: no such file"),
    "an unknown key of a stage": ({}, rewrite("reward", epoch=3), "reward: reward.yaml:6: epoch: unknown key. Perhaps"),
    "a stage's contradiction": ({}, rewrite("ppo", minibatches=3), "ppo: ppo.yaml:"),
    "no place for the reward model": (
        {},
        rewrite("ppo", rewards=[{"kind": "function", "function": "oracle.py:length"}]),
        "ppo.yaml: rewards: no reward of kind model without a path",
    ),
    "members of two minds": (
        {},
        lambda: (rewrite("reward", members=2)(), rewrite("ppo", rewards=[{"kind": "model", "ensemble": ["x"]}])()),
        "ppo.yaml: rewards.0.ensemble: is filled in with the 2 members of the round's reward model",
    ),
    "one answer": ({"answers": 1}, lambda: None, "answers: "),
    "more prompts than there are": ({"prompts_per_round": 99}, lambda: None, "prompts_per_round: 99 are asked for"),
    "no prompts": ({"prompts": {"path": "none.jsonl"}}, lambda: None, "prompts.path: no such file"),
    "no model": ({"model": "./none"}, lambda: None, "model: no such directory"),
    "an oracle that is not there": (
        {"labels": {"kind": "sources", "rewards": [{"kind": "function", "function": "oracle.py:lenght"}]}},
        lambda: None,
        "labels.rewards.0.function: oracle.py has no function lenght",
    ),
    "labels of no kind": (
        {"labels": {"kind": "dice"}},
        lambda: None,
        "labels: kind 'dice' is not one of sources, people",
    ),
    "an output that is a file": (
        {"output": "oracle.py"},
        lambda: None,
        "output: oracle.py is a file, and output names a folder",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    name: str, iteration: dict[str, Any], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, prepare, words = BAD[name]
    prepare()
    assert run(iteration | changes) == 2
    assert words in capsys.readouterr().err
    assert commands.seen == []
    assert not Path("rounds").exists()


def test_rounds_of_different_settings_do_not_mix(
    iteration: dict[str, Any], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(iteration | {"rounds": 1}) == 0
    assert run(iteration | {"answers": 4}) == 2
    assert "holds rounds with another iterate.yaml" in capsys.readouterr().err
    rewrite("ppo", steps=9)()
    assert run(iteration) == 2
    assert "holds rounds with another ppo.yaml" in capsys.readouterr().err
    assert len(commands.seen) == 5


def test_labels_that_are_none(
    iteration: dict[str, Any], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    write_rows(Path("labels.jsonl"), [{"prompt": "p", "responses": ["a"], "ranks": [0]}])
    assert run(iteration | {"labels": {"kind": "people", "path": "labels.jsonl"}}) == 2
    error = capsys.readouterr().err
    assert "stage round_00 label: " in error
    assert "labels.jsonl" in error

"""Each recipe of the examples fits its schema, and (slow) raises what it is trained on by what its file says."""

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.exact_answers import build as exact_answers
from examples.reviews import demo, figures
from examples.reviews.figures import Scale, figures_of, judged, mean_probability
from rlhf_ray.config.jobs.ppo import PPOConfig
from rlhf_ray.config.reading.verbs import load_job
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.tracking.run_record import RunRecord
from tests.jobs.ppo_runs import evaluation_rows, write_config, write_rows

ROOT = Path(__file__).parents[2]
RISE = 0.2
"""Least rise of the reward of held-out prompts, which lies between 0 and 1."""
SHARE = 0.5
"""Of the reviews and rank lists of `make demo`, which the language model and the reward model of this test learn."""


def recipes(folder: str) -> list[Path]:
    """Configs of `rlhf ppo`."""
    found = sorted((ROOT / "examples" / folder).glob("*.yaml"))
    return [path for path in found if "\nalgorithm:" in path.read_text(encoding="utf-8")]


REVIEWS, EXACT_ANSWERS = recipes("reviews"), recipes("exact_answers")


@pytest.mark.parametrize("path", REVIEWS, ids=lambda path: path.stem)
def test_each_fits_its_schema_and_says_what_to_expect(path: Path) -> None:
    config = load_job("ppo", [str(path)], check_files=False)
    assert isinstance(config, PPOConfig)
    assert config.output == f"outputs/demo/{path.stem}"
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_figures_of_a_run(tmp_path: Path) -> None:
    """Scores are centred by the reward model that the run names; the first evaluation is set against the last."""
    run, reward = tmp_path / "run", tmp_path / "reward"
    run.mkdir()
    reward.mkdir()
    ScoreStatistics(texts=9, mean=1.0, std=2.0, median=2.0).write(reward)
    sources = [{"name": "taste", "path": str(reward)}, {"name": "harm", "measures": "cost"}]
    config = {"rewards": sources, "algorithm": {"kl": {"coefficient": 0.1}}}
    write_config(run / "config.yaml", config)
    evaluations = [
        {"step": step, "eval_completions/distinct_2": 0.5 - step / 100, "eval_completions/mean_length": 40.0 - step}
        for step in (0, 5, 9)
    ]
    steps = [{"step": step, "step_time": 1.0, "objective/kl": float(step)} for step in (1, 9)]
    write_rows(run / "metrics.jsonl", [evaluations[0], steps[0], evaluations[1], steps[1], evaluations[2]])
    # In units of the deviation: half a unit above the mean is the median.
    book, written = "老师推荐的书非常", "深刻，文笔行云流水，值得反复读。"
    answers = [(book, written, 0, 0.5), (book, "难看。", 9, 0.5), (book, written, 9, 1e3)]
    samples = [
        {
            "step": step,
            "kind": "evaluation",
            "prompt": prompt,
            "response": text,
            "rewards": {"taste": score, "harm": step / 9},
        }
        for prompt, text, step, score in answers
    ]
    write_rows(run / "samples.jsonl", [{"step": 1, "kind": "training"}, *samples])
    (run / "run.json").write_text(json.dumps({"started": 10.0, "closed": 72.0}))
    found = figures_of(run)
    assert (found["reward_before"], found["reward_after"]) == (0.5, 0.75)
    assert found["oracle_before"] > 0.7 > found["oracle_after"] > 0.3
    assert (found["written_before"], found["written_after"]) == (1.0, 0.5)
    assert (found["length_before"], found["length_after"]) == (40.0, 31.0)
    assert (found["distinct2_before"], found["distinct2_after"]) == (0.5, pytest.approx(0.41))
    assert (found["cost_before"], found["cost_after"]) == (0.0, 1.0)
    assert (found["kl"], found["steps"], found["seconds"]) == (9.0, 9, 62.0)
    sources[0]["normalise"] = False
    write_config(run / "config.yaml", config)
    assert figures_of(run)["reward_before"] == pytest.approx(1 / (1 + math.exp(1.5))), "as the model gave them"
    write_rows(tmp_path / "answers.jsonl", [{"prompt": book, "completion": written}])
    assert judged(tmp_path / "answers.jsonl") == found["oracle_before"]


def test_a_score_may_be_as_low_as_it_likes() -> None:
    assert mean_probability([{"rewards": {"taste": score}} for score in (-1e4, 1e4)], "taste", Scale(2.0, 0.0)) == 0.5


def test_what_has_no_figures_is_refused_by_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(run: Path) -> str:
        monkeypatch.setattr("sys.argv", ["figures", str(run)])
        with pytest.raises(SystemExit, match=r"^2$"):
            figures.main()
        return capsys.readouterr().err

    assert "no such run folder, nor a file of answers" in refused(tmp_path / "none")
    record = RunRecord("1", 9, {})
    record.write(tmp_path)
    assert "the run has not ended" in refused(tmp_path)
    record.ended("finished").write(tmp_path)
    assert "was not evaluated before and after its steps" in refused(tmp_path)
    write_rows(tmp_path / "metrics.jsonl", [{"step": 0, "eval_completions/distinct_2": 0.5}])
    assert "was not evaluated before and after its steps" in refused(tmp_path)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current directory, with the examples in it and outputs yet to come."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "examples").symlink_to(ROOT / "examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        yield folder


@pytest.fixture(scope="module")
def reviews(project: Path) -> Path:
    """The folder of the reviews, their language model and their reward model."""
    demo.prepare(Path("outputs/demo"), seed=0, scale=SHARE)
    return project / "outputs" / "demo"


@pytest.fixture(scope="module")
def careless(project: Path) -> Path:
    """The folder of exact answers and of the model that gives them as its careless teacher did."""
    exact_answers.build("outputs/exact_answers")
    rlhf("sft", "examples/exact_answers/sft.yaml")
    return project / "outputs" / "exact_answers"


def rlhf(*arguments: str) -> None:
    """Run a command as a reader of the examples does."""
    subprocess.run([sys.executable, "-m", "rlhf_ray.cli", *arguments], check=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", REVIEWS, ids=lambda path: path.stem)
def test_reviews_become_better(path: Path, reviews: Path) -> None:
    rlhf("ppo", str(path))
    found = figures_of(reviews / path.stem)
    assert found["reward_after"] > found["reward_before"] + RISE, found
    assert found["oracle_after"] > found["oracle_before"], found
    if "cost_after" in found:
        limit = load_job("ppo", [str(path)], check_files=False).algorithm.lagrangian.cost_limit
        assert found["cost_before"] > limit + RISE / 2 > found["cost_after"], found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["dpo", "kto"])
def test_preferences_raise_the_judgement_of_the_grammar(name: str, reviews: Path) -> None:
    rlhf("dpo", f"examples/reviews/{name}.yaml")
    found = []
    for model in ("sft", name):
        answers = reviews / f"answers_{model}.jsonl"
        options = ("--model.path", f"outputs/demo/{model}/final", "--output", str(answers))
        rlhf("generate", "examples/reviews/generate.yaml", *options)
        found.append(judged(answers))
    assert found[1] > found[0] + RISE, found


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("path", EXACT_ANSWERS, ids=lambda path: path.stem)
def test_more_answers_are_right(path: Path, careless: Path) -> None:
    rlhf("ppo", str(path))
    rewards = [row["eval_rewards/exact/mean"] for row in evaluation_rows(careless / path.stem)]
    # With the cost of nines, a third of the right answers is out of reach.
    rise = RISE if path.stem != "safe_rlhf" else RISE / 2
    assert rewards[-1] > rewards[0] + rise, rewards

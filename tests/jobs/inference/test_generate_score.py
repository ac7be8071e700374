"""`rlhf generate` and `rlhf score` through the command: what one writes, the other reads."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch

import rlhf_ray
from rlhf_ray import cli
from rlhf_ray.config.jobs.inference import GenerateConfig
from rlhf_ray.data.records import PromptRecord
from rlhf_ray.jobs.inference import generate
from rlhf_ray.jobs.inference.rows import RowProgress
from rlhf_ray.redaction.texts import HIDDEN
from rlhf_ray.rollout.collection import CollectionProgress
from rlhf_ray.rollout.interfaces import PromptBatch
from tests.jobs.actors_here import actors_here, engines_kept
from tests.jobs.ppo_runs import write_config, write_rows
from tests.planted_secrets import commands_watched, leaks_in, leaks_in_text, ray_logs
from tests.scoring.services import Asked, say, serving

PROMPTS = ["The film", "刚收到货，感觉", "Great value for"]
NEW_TOKENS = 6
FUNCTION = """
import os, sys

def letters(prompts, completions, **columns):
    print(os.environ["PLANTED_API_KEY"], flush=True)
    print(dict(os.environ), file=sys.stderr, flush=True)
    return [sum(c.isalpha() for c in text if isinstance(text, str)) for text in completions]

def odd_answers(prompts, completions, answer, **columns):
    return [None if number % 2 == 0 else float("nan") if number == 1 else 10.0 * number for number in answer]

def broken(prompts, completions, **columns):
    raise ValueError("no judgement of " + os.environ["PLANTED_API_KEY"])
"""


@pytest.fixture(scope="module")
def reward_model(workspace: Path) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    set_seed(1)
    network = AutoModelForSequenceClassification.from_pretrained(workspace / "base", num_labels=1, dtype="float32")
    network.score.weight.data.mul_(3)
    network.save_pretrained(workspace / "reward")
    AutoTokenizer.from_pretrained(workspace / "base").save_pretrained(workspace / "reward")
    return workspace / "reward"


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("functions") / "judge.py"
    file.write_text(FUNCTION)
    return str(file)


@pytest.fixture(scope="module")
def generated(workspace: Path, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of one `rlhf generate`: two answers to each prompt, from the most likely token alone."""
    folder = tmp_path_factory.mktemp("generated")
    rows = [{"prompt": prompt, "answer": number, "completion": "a reference"} for number, prompt in enumerate(PROMPTS)]
    settings = {
        "output": str(folder / "new" / "answers.jsonl"),
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(write_rows(folder / "prompts.jsonl", rows)), "max_prompt_tokens": 64},
        "samples_per_prompt": 2,
        "rollout": {"max_new_tokens": NEW_TOKENS},
        "sampling": {"top_k": 1},
    }
    with engines_kept():
        assert cli.main(["generate", str(write_config(folder / "generate.yaml", settings))]) == 0
    return folder / "new" / "answers.jsonl"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_in_prompt_order_with_all_columns_and_nothing_is_left_beside_them(generated: Path) -> None:
    rows = read(generated)
    assert [path.name for path in generated.parent.iterdir()] == ["answers.jsonl"]
    assert [(row["prompt_id"], row["index"]) for row in rows] == [(str(p), i) for p in range(3) for i in range(2)]
    assert [row["prompt"] for row in rows[::2]] == PROMPTS
    assert [row["answer"] for row in rows] == [0, 0, 1, 1, 2, 2]
    assert {row["original_completion"] for row in rows} == {"a reference"}, "the data set's own column is kept"
    assert {row["finish_reason"] for row in rows} <= {"length", "stop"}
    assert len({row["seed"] for row in rows}) == len(rows)


def test_restricted_sampling_reaches_the_engine(generated: Path, workspace: Path) -> None:
    """With one token to choose from, answers are what Transformers takes as most likely."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(workspace / "base")
    network = AutoModelForCausalLM.from_pretrained(workspace / "base", dtype=torch.float32)
    for row in read(generated):
        ids = tokenizer(row["prompt"], return_tensors="pt")["input_ids"]
        expected = network.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
        assert row["completion"] == tokenizer.decode(expected, skip_special_tokens=True)


def test_sampling_settings() -> None:
    def sampling(**settings: Any) -> Any:
        base = {"output": "a.jsonl", "model": {"path": "base"}, "data": {"path": "p.jsonl"}}
        return generate.sampling_of(GenerateConfig.model_validate(base | settings))

    free = sampling(
        rollout={"temperature": 0.7, "max_new_tokens": 5, "stop": ["。"]}, sampling={"top_p": 0.9, "top_k": 3}
    )
    assert (free.temperature, free.top_p, free.top_k, free.max_tokens, free.stop) == (0.7, 0.9, 3, 5, ("。",))
    assert sampling(sampling={"greedy": True}).temperature == 0


def score(folder: Path, rewards: list[dict[str, Any]], data: Path, output: str, **changes: Any) -> int:
    settings = {"output": str(folder / output), "data": {"path": str(data)}, "rewards": rewards, "batch_size": 4}
    return cli.main(["score", str(write_config(folder / "score.yaml", settings | changes))])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_scores_are_those_of_plain_transformers_and_failures_are_null(
    suffix: str,
    generated: Path,
    reward_model: Path,
    functions: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    taste = {"name": "taste", "kind": "model", "path": str(reward_model), "dtype": "float32", "weight": 2}
    odd = {"name": "odd", "kind": "function", "function": f"{functions}:odd_answers", "failed_scores": 0.5}
    assert score(tmp_path, [taste, odd], generated, f"scores{suffix}") == 0
    output = tmp_path / f"scores{suffix}"
    rows = pyarrow.parquet.read_table(output).to_pylist() if suffix == ".parquet" else read(output)

    tokenizer = AutoTokenizer.from_pretrained(reward_model)
    network = AutoModelForSequenceClassification.from_pretrained(reward_model, dtype=torch.float32)
    tastes = []
    for row in rows:
        ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + [tokenizer.eos_token_id]
        tastes.append(network(torch.tensor([ids])).logits.item())
    np.testing.assert_allclose([row["taste"] for row in rows], tastes, atol=1e-5)
    assert np.std(tastes) > 1e-3, "the oracle must tell rows apart"

    assert [row["odd"] for row in rows] == [None] * 6
    # Answers 0 and 2 do not apply; where the source failed the sum is unknown, and not the rest of it.
    expected = [2 * taste if row["answer"] != 1 else None for row, taste in zip(rows, tastes, strict=True)]
    assert [row["reward"] is None for row in rows] == [total is None for total in expected]
    np.testing.assert_allclose(
        [row["reward"] for row in rows if row["reward"] is not None],
        [total for total in expected if total is not None],
        atol=2e-5,
    )
    # Whatever the reader had is still there.
    given = read(generated)
    assert [{name: row[name] for name in given[0]} for row in rows] == given
    shown = capsys.readouterr().out
    table = {
        line.split("│")[1].strip(): [c.strip() for c in line.split("│")[2:-1]]
        for line in shown.splitlines()
        if "│" in line
    }
    assert table["odd"] == ["1", "0", "4", "2", "", "", "", ""]
    assert table["taste"][1:4] == ["6", "0", "0"]
    assert float(table["taste"][4]) == pytest.approx(np.mean(tastes), abs=1e-4)
    assert "not a number" in shown, "the reason of a failure is said"


def test_messages_keep_their_form_and_scores_weigh_together(roles_here: None, functions: str, tmp_path: Path) -> None:
    rows = [{"prompt": [{"role": "user", "content": "?"}], "completion": [{"role": "assistant", "content": "abc"}]}]
    data = write_rows(tmp_path / "rows.jsonl", [*rows, {"prompt": "p", "completion": "ab1", "reward": 7}])
    letters = {"kind": "function", "function": f"{functions}:letters"}
    sources = [letters | {"name": "a", "weight": 2}, letters | {"name": "b", "weight": -0.5}]
    assert score(tmp_path, sources, data, "scores.jsonl") == 0
    messages, text = read(tmp_path / "scores.jsonl")
    assert messages["completion"] == rows[0]["completion"]
    assert (messages["a"], messages["reward"]) == (0, 0)
    assert text == {"prompt": "p", "completion": "ab1", "original_reward": 7, "a": 2.0, "b": 2.0, "reward": 3.0}


def test_a_source_that_fails_too_often_leaves_no_file(
    ray_session: None, functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c"}])
    broken = {"name": "opinion", "kind": "function", "function": f"{functions}:broken"}
    assert score(tmp_path, [broken], data, "scores.jsonl") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "score.yaml"]
    error = capsys.readouterr().err
    assert "opinion" in error
    assert f"{functions}:13: ValueError: no judgement of {HIDDEN}" in error
    assert "Traceback" not in error
    assert leaks_in_text(error) == []


def test_a_service_that_repeats_the_secret_in_its_complaint(
    ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only the source's own process knows the secret where jobs run on a cluster; and half of it is a secret too."""
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c"}])
    login = {"secret_variable": "JUDGE_LOGIN", "secret_header": "X-Login"}
    for before in ("", "." * 140):

        def complain(handler: Any, asked: Asked, number: int, before: str = before) -> None:
            say(handler, f"{before} {asked.headers['X-Login']}", 403)

        with serving(complain) as service:
            source = {"name": "service", "kind": "http", "url": service.url} | login
            assert score(tmp_path, [source], data, "scores.jsonl") == 1
        error = capsys.readouterr().err
        assert "refused: " in error
        assert HIDDEN in error
        assert "pl4nted" not in error


def test_rewards_that_print_the_environment_leave_no_secret_in_rays_logs(
    ray_session: None, functions: str, tmp_path: Path
) -> None:
    data = write_rows(tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "c"}])
    letters = {"name": "letters", "kind": "function", "function": f"{functions}:letters"}
    # The variable of one source is secret in the processes of the others too.
    with commands_watched() as commands, serving(lambda handler, *_: say(handler, [1.0])) as service:
        asked = {"name": "service", "kind": "http", "url": service.url, "secret_variable": "JUDGE_LOGIN"}
        assert score(tmp_path, [letters, asked], data, "scores.jsonl") == 0
    printed = [file for file in ray_logs().glob("logs/worker-*.out") if HIDDEN in file.read_text(errors="replace")]
    assert printed, "what a reward function prints is in the log of its worker"
    assert leaks_in(tmp_path, ray_logs()) == []
    assert commands == []


class BackwardsPool:
    """Answers prompts last first, as an engine may, and remembers how many it was asked at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def run(self, batch: PromptBatch) -> Any:
        self.asked.append(len(batch.prompts))
        count = batch.samples_per_prompt
        groups = [[Answer(record.prompt_id, index) for index in range(count)] for record in batch.prompts]
        return BackwardsGroups(groups)


@dataclass
class Answer:
    prompt_id: str
    index: int


class BackwardsGroups:
    progress = CollectionProgress(groups=0)

    def __init__(self, groups: list[list[Answer]]) -> None:
        self._groups = groups

    def __iter__(self) -> Iterator[list[Answer]]:
        return iter(self._groups[::-1])

    def __enter__(self) -> "BackwardsGroups":
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_groups_come_in_prompt_order_whatever_finishes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "PROMPTS_AT_ONCE", 4)
    config = {"output": "a.jsonl", "model": {"path": "m"}, "data": {"path": "p.jsonl"}, "samples_per_prompt": 2}
    prompts = [PromptRecord(str(number), "p", np.zeros(1, np.int32)) for number in range(10)]
    pool: Any = BackwardsPool()
    groups = generate.ordered_groups(GenerateConfig.model_validate(config), pool, prompts, RowProgress("x", 20))
    assert [[sample.prompt_id for sample in group] for group in groups] == [[str(n)] * 2 for n in range(10)]
    assert pool.asked == [4, 4, 2], "a data set of millions does not go out at once"


@pytest.mark.parametrize(
    ("verb", "changes", "words"),
    [
        ("generate", {"samples_per_prompt": 2, "sampling": {"greedy": True}}, "samples_per_prompt: a greedy answer"),
        ("generate", {"sampling": {"greedy": True, "top_k": 5}}, "sampling.greedy: takes the most likely"),
        ("generate", {"rollout": {"record": "samples"}}, "rollout.record: is for training"),
        ("score", {"rewards": [{"kind": "model", "path": "m", "weight": 2}]}, "rewards.0.name: 'reward' is the column"),
        (
            "score",
            {"rewards": [{"kind": "model", "path": "m", "name": "prompt"}]},
            "rewards.0.name: 'prompt' is a column",
        ),
    ],
)
def test_settings_that_contradict_themselves(
    verb: str, changes: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base: dict[str, Any] = {"output": "a.jsonl", "data": {"path": "p.jsonl"}}
    if verb == "generate":
        base["model"] = {"path": "m"}
    assert cli.main([verb, str(write_config(tmp_path / "config.yaml", base | changes))]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.usefixtures("ray_session")
def test_answers_that_cost_too_much_are_drawn_again_or_refused(
    workspace: Path, functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": prompt, "cost": "a column of the data"} for prompt in ("The film", "刚收到货", "Great value")]
    settings = {
        "output": str(tmp_path / "answers.jsonl"),
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(write_rows(tmp_path / "prompts.jsonl", rows)), "max_prompt_tokens": 64},
        "samples_per_prompt": 4,
        "rollout": {"max_new_tokens": 8},
        "safety": {
            "cost": {"name": "cost", "kind": "function", "function": f"{functions}:letters"},
            "threshold": 2,
            "action": "resample",
            "resamples": 2,
        },
    }
    with engines_kept(), actors_here():
        assert cli.main(["generate", str(write_config(tmp_path / "generate.yaml", settings))]) == 0
    found = read(tmp_path / "answers.jsonl")
    assert [(row["prompt_id"], row["index"]) for row in found] == [(str(p), i) for p in range(3) for i in range(4)]
    assert {row["original_cost"] for row in found} == {"a column of the data"}
    for row in found:
        letters = float(sum(c.isalpha() for c in row["completion"]))
        if row["safety"] == "refused":
            assert (row["completion"], row["attempts"]) == ("", 3)
            assert row["cost"] > 2
        else:
            assert letters == row["cost"] <= 2
            assert (row["safety"] == "resampled") == (row["attempts"] > 1)
    # About a third of a fresh model's tokens have letters, so both happen among twelve answers.
    assert len({row["safety"] for row in found}) >= 2
    outcomes = [row["safety"] for row in found]
    assert f"{outcomes.count('passed')} passed" in capsys.readouterr().out


HALF_OF = {"p": 0.5, "q": None}


@pytest.mark.usefixtures("roles_here")
def test_a_service_scores_beside_a_function(functions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": "p", "completion": "ab"}, {"prompt": "q", "completion": "c"}]
    )
    letters = {"name": "letters", "kind": "function", "function": f"{functions}:letters", "weight": 2}
    # Samples of a batch may come in any order.
    with serving(lambda handler, asked, number: say(handler, [HALF_OF[p] for p in asked.body["prompts"]])) as service:
        source = {"name": "service", "kind": "http", "url": service.url}
        assert score(tmp_path, [source, letters], data, "scores.jsonl") == 0
    assert [(row["service"], row["reward"]) for row in read(tmp_path / "scores.jsonl")] == [(0.5, 4.5), (None, 2.0)]
    assert sorted(service.asked[0].body["prompts"]) == ["p", "q"]

    with serving(lambda handler, asked, number: say(handler, "down", 503)) as service:
        source = {"name": "service", "kind": "http", "url": service.url, "timeout_seconds": 1}
        assert score(tmp_path, [source, letters], data, "none.jsonl") == 1
    assert not (tmp_path / "none.jsonl").exists()
    assert f'refused: {service.url}: HTTP 503 Service Unavailable: "down" (attempt' in capsys.readouterr().err


def test_from_python_where_an_event_loop_runs(
    ray_session: None, functions: str, generated: Path, tmp_path: Path
) -> None:
    settings = {
        "output": tmp_path / "scores.jsonl",
        "data": {"path": generated},
        "rewards": [{"kind": "function", "function": f"{functions}:letters"}],
    }

    async def cell() -> rlhf_ray.Run:
        return rlhf_ray.run(settings)

    scored = asyncio.run(cell()).samples
    answers = rlhf_ray.Run(generated).samples
    assert scored.column("completion") == answers.column("completion")
    assert scored.column("reward") == [sum(map(str.isalpha, text)) for text in answers.column("completion")]

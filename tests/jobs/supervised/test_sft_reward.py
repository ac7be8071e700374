"""`rlhf sft` and `rlhf reward` on the real DeepSpeed: they learn, and go on where they were stopped."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
import yaml

from rlhf_ray.checkpoint import background
from rlhf_ray.checkpoint.checkpoints import Checkpoints
from rlhf_ray.checkpoint.parts import Part
from rlhf_ray.checkpoint.storage import CheckpointError
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig, SFTConfig
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.config.run import CheckpointConfig
from rlhf_ray.data.loading import read_rankings
from rlhf_ray.jobs.supervised import reward, sft
from rlhf_ray.jobs.supervised.ensemble import REPORT_FILE
from rlhf_ray.models.loading import load_tokenizer
from rlhf_ray.models.score_statistics import STATISTICS_FILE
from rlhf_ray.roles.trainer import TrainerGroup
from rlhf_ray.runs.model_checks import check_reward_source
from rlhf_ray.scoring.model import ModelScorer
from tests.jobs.actors_here import actors_here
from tests.jobs.bad_runs import largest_file
from tests.jobs.ppo_runs import metrics_of, saved_tensors, untimed, write_rows

pytestmark = pytest.mark.usefixtures("ray_session")

STEPS = 10
THINGS = ["film", "book", "box", "phone", "room", "shirt", "song", "chair", "lamp", "trip"]
BEST, MIDDLE, WORST = "wonderful", "fine", "terrible"


def sft_config(workspace: Path, output: Path) -> SFTConfig:
    rows = [
        {"prompt": f"The {thing}", "completion": f" was {word}."} for thing in THINGS for word in (BEST, MIDDLE, WORST)
    ]
    settings: dict[str, Any] = {
        "output": str(output),
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(write_rows(output.parent / "train.jsonl", rows[:24]))},
        "evaluation_data": {"path": str(write_rows(output.parent / "held_out.jsonl", rows[24:]))},
        "epochs": 2.5,
        "batch_size": 6,
        "evaluate_every_steps": 5,
        "trainer": {"learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 2},
        "checkpoint": {"every_steps": 0, "keep": 5},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    return SFTConfig.model_validate(settings)


@pytest.fixture(scope="module")
def learned(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft") / "run"
    sft.run(sft_config(workspace, folder))
    return folder


@pytest.fixture(scope="module")
def resumed(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, told to leave within its fourth step and started again; then its trainer dies in the seventh."""
    folder = tmp_path_factory.mktemp("sft_resumed") / "run"
    train_step, steps = TrainerGroup.train_step, 0

    def interrupted(group: TrainerGroup, *arguments: Any, **named: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        if steps == 7:
            process = ray.get(group.actors.handles[0].__ray_call__.remote(lambda _: os.getpid()), timeout=60)
            os.kill(process, signal.SIGKILL)
        return train_step(group, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "train_step", interrupted)
        sft.run(sft_config(workspace, folder))
        assert [row["step"] for row in metrics_of(folder)] == [1, 2, 3, 4]
        assert not (folder / "final").exists()
        sft.run(sft_config(workspace, folder))
    assert steps == STEPS + 3, "no step is made twice but those since the checkpoint of the fourth"
    return folder


@pytest.mark.chaos
def test_a_trainer_that_dies_as_it_starts_and_in_its_export_changes_nothing(
    learned: Path, workspace: Path, tmp_path: Path
) -> None:
    ready, export = TrainerGroup.ready, TrainerGroup.export
    deaths: list[str] = []

    def die(group: TrainerGroup, act: str) -> None:
        if act not in deaths:
            deaths.append(act)
            kill = group.actors.handles[0].__ray_call__.remote(lambda _: os.kill(os.getpid(), signal.SIGKILL))
            ray.wait([kill], timeout=60)

    def dies_as_it_starts(group: TrainerGroup) -> None:
        die(group, "start")
        ready(group)

    def dies_in_export(group: TrainerGroup, *arguments: Any, **named: Any) -> None:
        die(group, "export")
        export(group, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "ready", dies_as_it_starts)
        patch.setattr(TrainerGroup, "export", dies_in_export)
        sft.run(sft_config(workspace, tmp_path / "run"))
    assert deaths == ["start", "export"]
    assert [untimed(row) for row in metrics_of(tmp_path / "run")] == [untimed(row) for row in metrics_of(learned)]
    files = [folder / "final" / "model.safetensors" for folder in (learned, tmp_path / "run")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_sft_learns_what_it_reads(learned: Path) -> None:
    rows = metrics_of(learned)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    held_out = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert len(held_out) == 2
    assert held_out[-1] < held_out[0]
    assert rows[-1]["learning_rate"] < max(row["learning_rate"] for row in rows)
    assert rows[-1]["epoch"] == 2.5


def test_the_logged_loss_is_that_of_plain_transformers(learned: Path, workspace: Path) -> None:
    """Held-out loss of the finished model: mean over completions' tokens and EOS."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(learned / "final", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(learned / "final")
    losses = []
    for line in (learned.parent / "held_out.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([*prompt, *tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            logprobs = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        losses += (-logprobs[len(prompt) - 1 :]).tolist()
    assert metrics_of(learned)[-1]["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-4)


def test_sft_resumed_equals_sft_not_interrupted(learned: Path, resumed: Path) -> None:
    assert [untimed(row) for row in metrics_of(resumed)] == [untimed(row) for row in metrics_of(learned)]
    expected, found = (saved_tensors(run, STEPS, "trainer") for run in (learned, resumed))
    assert expected.keys() == found.keys()
    assert not [name for name in expected if not torch.equal(expected[name], found[name])]
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in (learned, resumed)]
    assert weights[0] == weights[1]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.usefixtures("roles_here")
def test_a_run_killed_while_it_saves_goes_on_from_the_save_before(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And, where a part of that one is damaged, which its rank sees, from the one before that."""

    def config(name: str) -> SFTConfig:
        (tmp_path / name).mkdir()
        plain = sft_config(workspace, tmp_path / name / "run")
        return plain.model_copy(update={"checkpoint": CheckpointConfig(every_steps=2, keep=9)})

    whole, broken = config("whole"), config("broken")
    sft.run(whole)
    write = background.write_tensors

    def killed(directory: str, name: str, tensors: Any) -> Part:
        if "step_6" in directory:
            raise Killed
        return write(directory, name, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(background, "write_tensors", killed)
        with pytest.raises(Killed):
            sft.run(broken)
    checkpoints = Path(broken.output) / "checkpoints"
    newest = Checkpoints(str(checkpoints), 9).latest()
    assert newest is not None
    assert newest.step == 4
    (part,) = (checkpoints / "step_4" / "trainer").iterdir()
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    sft.run(broken)
    assert "checkpoint of step 4 is damaged" in caplog.text
    runs = Path(whole.output), Path(broken.output)
    expected, found = (saved_tensors(run, STEPS, "trainer") for run in runs)
    assert not [name for name in expected if not torch.equal(expected[name], found[name])]
    assert len({(run / "final" / "model.safetensors").read_bytes() for run in runs}) == 1
    assert Checkpoints(str(checkpoints), 9).steps() == [2, 4, 6, 8, 10]


@pytest.mark.usefixtures("roles_here")
def test_a_full_disk_ends_the_run_with_what_to_do(workspace: Path, tmp_path: Path) -> None:
    config = sft_config(workspace, tmp_path / "run")
    config = config.model_copy(update={"checkpoint": CheckpointConfig(every_steps=2)})
    with largest_file(300_000), pytest.raises(CheckpointError, match=r"step_2.*the storage is full.*free space"):
        sft.run(config)
    assert Checkpoints(str(tmp_path / "run" / "checkpoints"), 1).latest() is None


@pytest.mark.usefixtures("roles_here")
def test_a_run_that_was_killed_before_its_model_was_whole_writes_it(learned: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(learned, tmp_path / "run")
    shutil.rmtree(folder / "final")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "train_step", lambda *_, **__: pytest.fail("a step was made again"))
        before = yaml.safe_load((learned / "config.yaml").read_text(encoding="utf-8"))
        sft.run(SFTConfig.model_validate(before | {"output": str(folder)}))
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in (learned, folder)]
    assert weights[0] == weights[1]
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"


@pytest.fixture(scope="module")
def reward_model(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Learned from lines of three texts, best first, and from nothing about the last two things."""
    folder = tmp_path_factory.mktemp("reward")
    lines = ["\t".join(f"The {thing} was {word}." for word in (BEST, MIDDLE, WORST)) for thing in THINGS]
    (folder / "train.tsv").write_text("\n".join(lines[:8]) + "\n")
    (folder / "held_out.tsv").write_text("\n".join(lines[8:]) + "\n")
    settings: dict[str, Any] = {
        "output": str(folder / "run"),
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(folder / "train.tsv")},
        "evaluation_data": {"path": str(folder / "held_out.tsv")},
        "epochs": 10,
        "batch_size": 4,
        "evaluate_every_steps": 0,
        "trainer": {"learning_rate": 3e-3},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    reward.run(RewardTrainingConfig.model_validate(settings))
    return folder


def test_a_reward_model_ranks_what_it_has_not_read(reward_model: Path) -> None:
    rows = metrics_of(reward_model / "run")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[-1]["eval_accuracy"] >= 5 / 6, "six pairs of two things that it has not read about"


def test_a_reward_model_loads_in_plain_transformers(reward_model: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    final = reward_model / "run" / "final"
    model = AutoModelForSequenceClassification.from_pretrained(final, dtype="float32")
    settings = RewardTrainingConfig.model_validate(
        {"output": "run", "model": {"path": str(final)}, "data": {"path": str(reward_model / "train.tsv")}}
    )
    texts = [text for row in read_rankings(settings.data, load_tokenizer(settings.model)).rows for text in row.texts]
    with torch.no_grad():
        scores = [float(model(torch.from_numpy(text).long()[None]).logits[0, 0]) for text in texts]
    written = json.loads((final / STATISTICS_FILE).read_text())
    assert written["texts"] == len(scores) == 24
    assert written["median"] == pytest.approx(np.median(scores), abs=1e-4)
    assert written["mean"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert written["std"] == pytest.approx(np.std(scores), abs=1e-4)
    assert written["std"] > 0.1


@pytest.fixture(scope="module")
def ensemble(tiny_encoder: Path, reward_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders that learned to rank the same lines, started a second time after the end."""
    folder = tmp_path_factory.mktemp("ensemble")
    data, held_out = ({"path": str(reward_model / f"{name}.tsv"), "max_tokens": 96} for name in ("train", "held_out"))
    settings: dict[str, Any] = {
        "output": str(folder / "run"),
        "model": {"path": str(tiny_encoder), "dtype": "float32"},
        "data": data,
        "evaluation_data": held_out,
        "members": 2,
        "loss": "sigmoid",
        "aggregation": "lists",
        "epochs": 10,
        "batch_size": 4,
        "evaluate_every_steps": 0,
        "trainer": {"learning_rate": 3e-3},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    }
    with actors_here():
        reward.run(RewardTrainingConfig.model_validate(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward, "learn", lambda *_: pytest.fail("a finished member was trained again"))
        reward.run(RewardTrainingConfig.model_validate(settings))
    return folder / "run"


def test_an_ensemble_of_encoders_learns_and_says_how_far_its_members_disagree(ensemble: Path) -> None:
    report = json.loads((ensemble / REPORT_FILE).read_text())
    losses = [[row["loss"] for row in metrics_of(folder)] for folder in (ensemble, ensemble / "members" / "2")]
    assert losses[0] != losses[1], "seeds differ"
    for own in losses:
        assert -0.6 < own[0] < -0.3, "sigmoid starts near -0.5"
        assert own[-1] < own[0] - 0.2
    assert [member["accuracy"] for member in report["members"]] == [
        metrics_of(folder)[-1]["eval_accuracy"] for folder in (ensemble, ensemble / "members" / "2")
    ]
    assert report["ensemble"]["accuracy"] >= 4 / 6
    assert report["disagreement"]["std"] > 0
    assert 0 <= report["disagreement"]["disputed_pairs"] <= 1


def test_an_ensemble_is_a_reward_source(ensemble: Path) -> None:
    members = [str(ensemble / "final"), str(ensemble / "members" / "2" / "final")]
    source = ModelReward(
        path=members[0], ensemble=members[1:], disagreement_penalty=1.0, dtype="float32", max_tokens=96
    )
    check_reward_source("rewards.0", source)
    scores = ModelScorer(source, 512).score(["The film", "The film"], [f" was {word}." for word in (BEST, WORST)], {})
    best, worst = scores.values
    assert best is not None
    assert worst is not None
    assert best > worst

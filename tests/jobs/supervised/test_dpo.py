"""`rlhf dpo` on the real DeepSpeed: it begins at ln 2, learns, resumes, and does not depend on how rows are divided."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.jobs.supervised import dpo
from rlhf_ray.roles.trainer import TrainerGroup
from tests.jobs.ppo_runs import metrics_of, saved_tensors, untimed, write_rows

pytestmark = pytest.mark.usefixtures("ray_session")

THINGS = ["film", "book", "box", "phone", "room", "shirt", "song", "chair", "lamp", "trip"]
GOOD, BAD = "was wonderful and I love it.", "was bad."
STEPS = 8
Make = Callable[..., DPOConfig]


def pairs(things: list[str]) -> list[dict[str, Any]]:
    """Pairs with the prompt apart, or in both answers."""
    explicit = [{"prompt": f"The {thing}", "chosen": f" {GOOD}", "rejected": f" {BAD}"} for thing in things]
    return [*explicit, *({"chosen": f"My {thing} {GOOD}", "rejected": f"My {thing} {BAD}"} for thing in things)]


def labelled(things: list[str]) -> list[dict[str, Any]]:
    return [
        {"prompt": f"The {thing}", "completion": f" {words}", "label": words == GOOD}
        for thing in things
        for words in (GOOD, BAD)
    ]


@pytest.fixture(scope="module")
def settings(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Settings of a run in a folder; keyword arguments replace top-level keys, or update sections."""
    folder = tmp_path_factory.mktemp("dpo")
    base: dict[str, Any] = {
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(write_rows(folder / "pairs.jsonl", pairs(THINGS[:8])))},
        "evaluation_data": {"path": str(write_rows(folder / "held_out.jsonl", pairs(THINGS[8:])))},
        "epochs": 3,
        "batch_size": 6,
        "tokens_per_microbatch": 256,
        "evaluate_every_steps": 4,
        # An epsilon above the noise of float32 gradients, so that another order of summation moves weights but little.
        "trainer": {"learning_rate": 3e-3, "epsilon": 1e-4},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
        "reference_cache": str(folder / "cache"),
    }
    write_rows(folder / "labelled.jsonl", labelled(THINGS[:8]))
    write_rows(folder / "labelled_held_out.jsonl", labelled(THINGS[8:]))

    def make(output: Path, **changes: Any) -> DPOConfig:
        made = base | {"output": str(output)}
        for key, value in changes.items():
            before = made.get(key)
            made[key] = before | value if isinstance(before, dict) and isinstance(value, dict) else value
        return DPOConfig.model_validate(made)

    return make


@pytest.fixture(scope="module")
def learned(settings: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    folder = tmp_path_factory.mktemp("learned") / "run"
    dpo.run(settings(folder))
    return folder


def test_it_begins_at_ln_2_and_learns(learned: Path) -> None:
    rows = metrics_of(learned)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    first, last = rows[0], rows[-1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert last["loss"] < 0.5
    assert last["rewards/margins"] > 0.5
    assert last["rewards/accuracies"] == 1
    assert last["rewards/margins"] == pytest.approx(last["rewards/chosen"] - last["rewards/rejected"], abs=1e-5)
    held_out = [row for row in rows if "eval_loss" in row]
    assert len(held_out) == 2
    assert held_out[-1]["eval_rewards/accuracies"] == 1
    assert held_out[-1]["eval_loss"] < held_out[0]["eval_loss"] < math.log(2)


def summed_logprobs(model: Path, prompt: str, answers: list[str]) -> list[float]:
    """Summed log-probabilities by plain Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    sums = []
    for answer in answers:
        before = tokenizer(prompt)["input_ids"]
        ids = torch.tensor([*before, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
        with torch.no_grad():
            logprobs = network(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
        sums.append(float(logprobs[len(before) - 1 :].sum()))
    return sums


def test_the_final_model_loads_in_plain_transformers_and_gives_the_logged_margin(
    learned: Path, workspace: Path
) -> None:
    margins = []
    for thing in THINGS[8:]:
        # A shared prompt ends before the space that begins both answers.
        for prompt in (f"The {thing}", f"My {thing}"):
            models = (learned / "final", workspace / "base")
            sums = [summed_logprobs(path, prompt, [f" {GOOD}", f" {BAD}"]) for path in models]
            (chosen, rejected), (reference_chosen, reference_rejected) = sums
            margins.append(0.1 * (chosen - reference_chosen - rejected + reference_rejected))
    assert metrics_of(learned)[-1]["eval_rewards/margins"] == pytest.approx(np.mean(margins), abs=1e-4)


def interrupted(run: Callable[[], None], at: int) -> int:
    """Run to the end of a step, and then again to the end; returns how many steps were made."""
    train_step, steps = TrainerGroup.train_step, 0

    def stopping(group: TrainerGroup, *arguments: Any, **named: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(group, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "train_step", stopping)
        run()
        assert steps == at
        run()
    return steps


def assert_same_run(found: Path, expected: Path) -> None:
    assert [untimed(row) for row in metrics_of(found)] == [untimed(row) for row in metrics_of(expected)]
    tensors = [saved_tensors(run, metrics_of(expected)[-1]["step"], "trainer") for run in (found, expected)]
    assert tensors[0].keys() == tensors[1].keys()
    assert not [name for name in tensors[0] if not torch.equal(tensors[0][name], tensors[1][name])]


def test_resumed_equals_not_interrupted(settings: Make, learned: Path, tmp_path: Path) -> None:
    """Without a cache too: the reference is computed anew from where the run began, not from where it goes on."""
    steps = interrupted(lambda: dpo.run(settings(tmp_path / "run", reference_cache=None)), at=3)
    assert steps == STEPS
    assert_same_run(tmp_path / "run", learned)


def test_ranks_and_micro_batches_do_not_matter(settings: Make, learned: Path, tmp_path: Path) -> None:
    """Two ranks of ZeRO 3 with micro-batches of a pair or two, against one rank with whole steps."""
    divided = {"trainer": {"workers": 2, "zero_stage": 3}, "tokens_per_microbatch": 64}
    dpo.run(settings(tmp_path / "run", **divided, evaluation_data=None, reference_cache=None))
    for found, expected in zip(metrics_of(tmp_path / "run"), metrics_of(learned), strict=True):
        for name in ("loss", "rewards/margins", "logps/chosen", "grad_norm"):
            assert found[name] == pytest.approx(expected[name], rel=2e-3, abs=2e-4), name


def calls_to_the_reference(run: Callable[[], None]) -> int:
    """Batches whose log-probabilities were computed before the first step."""
    submit, train = TrainerGroup.submit_logprobs, TrainerGroup.train_step
    calls = 0
    began = False

    def counting(group: TrainerGroup, *arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += not began
        return submit(group, *arguments, **named)

    def training(group: TrainerGroup, *arguments: Any, **named: Any) -> dict[str, float]:
        nonlocal began
        began = True
        return train(group, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "submit_logprobs", counting)
        patch.setattr(TrainerGroup, "train_step", training)
        run()
    return calls


@pytest.mark.usefixtures("roles_here")
def test_the_cache_serves_later_runs_of_the_same_data_only(settings: Make, learned: Path, tmp_path: Path) -> None:
    # One step of as many rows as that run's.
    short = {"evaluation_data": None, "epochs": 6 / 16}
    again = settings(tmp_path / "again", **short, tokens_per_microbatch=100)
    assert calls_to_the_reference(lambda: dpo.run(again)) == 0
    assert metrics_of(tmp_path / "again")[0]["logps/chosen"] == pytest.approx(metrics_of(learned)[0]["logps/chosen"])
    assert metrics_of(tmp_path / "again")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    other = settings(tmp_path / "other", **short, data={"limit": 12})
    assert calls_to_the_reference(lambda: dpo.run(other)) == 1


@pytest.mark.slow
def test_coupled_losses_do_not_depend_on_division_and_resume(settings: Make, tmp_path: Path) -> None:
    """Statistics of the whole step, and BCO's mean over the run, which a checkpoint must hold."""
    loss = {"type": ["bco", "aot"], "weights": [1.0, 0.5], "nll_coefficient": 0.1}
    short = {"loss": loss, "epochs": 2, "evaluation_data": None}
    dpo.run(settings(tmp_path / "whole", **short))
    dpo.run(settings(tmp_path / "split", **short, tokens_per_microbatch=48, trainer={"workers": 2}))
    rows = metrics_of(tmp_path / "whole")
    for found, expected in zip(metrics_of(tmp_path / "split"), rows, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    # At the first step c = r = 0: two logistic losses of BCO, half of one of AOT, a tenth of the likelihood.
    assert rows[0]["loss"] == pytest.approx(2.5 * math.log(2) + 0.1 * rows[0]["nll_loss"], abs=1e-4)
    assert rows[-1]["rewards/margins"] > 0.2
    interrupted(lambda: dpo.run(settings(tmp_path / "resumed", **short)), at=2)
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


@pytest.mark.usefixtures("roles_here")
@pytest.mark.parametrize("kind", ["kto", "bco"])
def test_single_answers_with_labels(kind: str, settings: Make, tmp_path: Path) -> None:
    base = settings(tmp_path / "run")
    data, held_out = (
        {"path": str(Path(base.data.path).parent / name)} for name in ("labelled.jsonl", "labelled_held_out.jsonl")
    )
    dpo.run(
        settings(
            tmp_path / "run", loss={"type": kind}, data=data, evaluation_data=held_out, evaluate_every_steps=0, epochs=4
        )
    )
    rows = metrics_of(tmp_path / "run")
    assert rows[0]["loss"] == pytest.approx(0.5 if kind == "kto" else math.log(2), abs=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.05
    assert rows[-1]["eval_rewards/margins"] > 0.3
    assert ("kl" in rows[0]) == (kind == "kto")
    assert "count/chosen" not in rows[0]
    assert json.loads((tmp_path / "run" / "final" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]


@pytest.mark.usefixtures("roles_here")
def test_a_policy_without_a_gradient_is_said_to_be(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf_ray.jobs.supervised.loop import NothingLearned

    train_step = TrainerGroup.train_step
    monkeypatch.setattr(
        TrainerGroup, "train_step", lambda group, *rest, **named: train_step(group, *rest, **named) | {"grad_norm": 0.0}
    )
    with pytest.raises(NothingLearned, match="no parameter is trained"):
        dpo.run(settings(tmp_path / "run"))

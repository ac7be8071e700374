"""Jobs that train adapters, on the real DeepSpeed: they learn, resume, are saved small, and load in plain PEFT."""

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
from safetensors.torch import load_file, save_file

from rlhf_ray import cli
from rlhf_ray.config.jobs.dpo import DPOConfig
from rlhf_ray.config.jobs.supervised import RewardTrainingConfig, SFTConfig
from rlhf_ray.config.rewards import ModelReward
from rlhf_ray.jobs.supervised import dpo, reward, sft
from rlhf_ray.roles.trainer import TrainerGroup
from rlhf_ray.scoring.model import ModelScorer
from tests.jobs.actors_here import actors_here
from tests.jobs.ppo_runs import metrics_of, saved_tensors, untimed, write_rows

pytestmark = pytest.mark.usefixtures("ray_session")

THINGS = ["film", "book", "box", "phone", "room", "shirt", "song", "chair"]
GOOD, BAD = " was wonderful and I love it.", " was bad."
LORA = {"r": 4, "lora_alpha": 16}


def settings_of(workspace: Path, output: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    return {
        "output": str(output),
        "model": {"path": str(workspace / "base"), "dtype": "float32"},
        "data": {"path": str(write_rows(output.parent / "rows.jsonl", rows))},
        "epochs": 2,
        "batch_size": 4,
        "tokens_per_microbatch": 256,
        "trainer": {"learning_rate": 1e-2, "lora": LORA},
        "checkpoint": {"every_steps": 0},
        "tracking": {"wandb": "off", "tensorboard": False},
    } | changes


def pairs() -> list[dict[str, str]]:
    return [{"prompt": f"The {thing}", "chosen": GOOD, "rejected": BAD} for thing in THINGS]


def summed_logprobs(network: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    before = tokenizer(prompt)["input_ids"]
    ids = torch.tensor([*before, *tokenizer(answer)["input_ids"], tokenizer.eos_token_id])
    with torch.no_grad():
        logprobs = network(ids[None]).logits[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    return float(logprobs[len(before) - 1 :].sum())


@pytest.fixture(scope="module")
def preferring(workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DPO run of four steps."""
    folder = tmp_path_factory.mktemp("dpo") / "run"
    with actors_here():
        dpo.run(DPOConfig.model_validate(settings_of(workspace, folder, pairs(), reference_cache=None)))
    return folder


def test_dpo_begins_at_ln_2_and_its_margins_are_those_of_plain_peft(preferring: Path, workspace: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = metrics_of(preferring)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[-1]["loss"] < 0.6
    tokenizer = AutoTokenizer.from_pretrained(preferring / "final")
    policy = AutoPeftModelForCausalLM.from_pretrained(preferring / "final")
    base = AutoModelForCausalLM.from_pretrained(workspace / "base", dtype=torch.float32)

    def margin(thing: str) -> float:
        ratios = [
            summed_logprobs(policy, tokenizer, f"The {thing}", answer)
            - summed_logprobs(base, tokenizer, f"The {thing}", answer)
            for answer in (GOOD, BAD)
        ]
        return 0.1 * (ratios[0] - ratios[1])

    assert np.mean([margin(thing) for thing in THINGS]) > rows[-1]["rewards/margins"] > rows[1]["rewards/margins"] > 0


def test_a_checkpoint_holds_the_adapter_alone(preferring: Path) -> None:
    tensors = saved_tensors(preferring, 4, "trainer")
    assert all(".lora_" in name for name in tensors if "/" in name and not name.startswith("random/"))


@pytest.mark.slow
def test_dpo_resumed_equals_dpo_not_interrupted(preferring: Path, workspace: Path, tmp_path: Path) -> None:
    """Bit for bit: also when it goes on, the reference is the model without its adapter."""
    settings = DPOConfig.model_validate(settings_of(workspace, tmp_path / "run", pairs(), reference_cache=None))
    train_step, steps = TrainerGroup.train_step, 0

    def interrupted(group: TrainerGroup, *arguments: Any, **named: Any) -> dict[str, float]:
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(group, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainerGroup, "train_step", interrupted)
        dpo.run(settings)
        assert not (tmp_path / "run" / "final").exists()
        dpo.run(settings)
    assert steps == 4
    assert [untimed(row) for row in metrics_of(tmp_path / "run")] == [untimed(row) for row in metrics_of(preferring)]
    found, expected = (saved_tensors(run, 4, "trainer") for run in (tmp_path / "run", preferring))
    assert found.keys() == expected.keys()
    assert not [name for name in found if not torch.equal(found[name], expected[name])]


def test_another_adapter_is_another_experiment(
    preferring: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = settings_of(workspace, preferring, pairs(), reference_cache=None)
    settings["trainer"]["lora"] = LORA | {"r": 8}
    (preferring.parent / "other.yaml").write_text(json.dumps(settings))
    assert cli.main(["dpo", str(preferring.parent / "other.yaml")]) == 2
    assert "other settings, which stay the same within a run: trainer.lora.r: 4 -> 8." in capsys.readouterr().err


@pytest.mark.usefixtures("roles_here")
def test_a_tuned_model_and_its_merge_answer_alike(workspace: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = [{"prompt": f"The {thing}", "completion": GOOD} for thing in THINGS]
    trainer = {"learning_rate": 1e-2, "lora": LORA | {"use_rslora": True, "target_modules": ["q_proj", "down_proj"]}}
    sft.run(SFTConfig.model_validate(settings_of(workspace, tmp_path / "run", rows, trainer=trainer)))
    losses = [row["loss"] for row in metrics_of(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.1
    final, merged = tmp_path / "run" / "final", tmp_path / "merged"
    assert cli.main(["merge", str(final), "--output", str(merged)]) == 0
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(workspace / "base").chat_template
    adapted = AutoPeftModelForCausalLM.from_pretrained(final)
    whole = AutoModelForCausalLM.from_pretrained(merged)
    assert whole.dtype == torch.float32
    ids = torch.tensor([tokenizer("The film was wonderful and I love it.")["input_ids"]])
    with torch.no_grad():
        assert float((adapted(ids).logits - whole(ids).logits).abs().max()) < 1e-5
        with adapted.disable_adapter():
            assert float((adapted(ids).logits - whole(ids).logits).abs().max()) > 0.1
    assert isinstance(json.loads((final / "adapter_config.json").read_text())["lora_alpha"], int)


@pytest.mark.usefixtures("roles_here")
def test_a_reward_model_keeps_its_head_and_statistics(workspace: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    run = tmp_path / "run"
    reward.run(RewardTrainingConfig.model_validate(settings_of(workspace, run, pairs(), epochs=4)))
    assert metrics_of(run)[-1]["loss"] < 0.4
    assert cli.main(["merge", str(run / "final"), "--output", str(tmp_path / "merged")]) == 0
    assert (tmp_path / "merged" / "score_statistics.json").is_file()
    scorer = ModelScorer(
        ModelReward(path=str(tmp_path / "merged"), dtype="float32", normalise=False), tokens_per_microbatch=256
    )
    prompts = [f"The {thing}" for thing in THINGS]
    good, bad = (np.array(scorer.score(prompts, [words] * len(prompts), {}).values) for words in (GOOD, BAD))
    assert (good > bad).all()
    adapted = AutoPeftModelForSequenceClassification.from_pretrained(run / "final", num_labels=1).eval()
    network = adapted.base_model.model
    ids = torch.tensor(scorer._encoder.judged(prompts[0], GOOD).astype(np.int64))[None]
    with torch.no_grad():
        score = float(network.score(network.model(ids).last_hidden_state[0, -1])[0])
    assert score == pytest.approx(good[0], abs=1e-5)


def damaged(final: Path, folder: Path, change: Callable[[Path], object]) -> Path:
    import shutil

    change(shutil.copytree(final, folder / "adapter"))
    return folder / "adapter"


def rename_tensor(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    save_file(
        {name.replace("q_proj", "qkv"): value for name, value in tensors.items()}, path / "adapter_model.safetensors"
    )


def spoil(path: Path) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({name: value * math.nan for name, value in tensors.items()}, path / "adapter_model.safetensors")


def rewrite(path: Path, **values: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


BAD_ADAPTERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no weights": (
        lambda path: (path / "adapter_model.safetensors").unlink(),
        ["no adapter_model.safetensors", "PEFT"],
    ),
    "cut": (lambda path: (path / "adapter_model.safetensors").write_bytes(b"1234567890"), ["is damaged"]),
    "no settings": (lambda path: (path / "adapter_config.json").unlink(), ["no adapter_config.json"]),
    "no JSON": (lambda path: (path / "adapter_config.json").write_text("{"), ["adapter_config.json", "cannot be read"]),
    "another kind": (lambda path: rewrite(path, peft_type="IA3"), ["type", "IA3", "only LORA"]),
    "other names": (rename_tensor, ["does not belong to", "on one side only", "--base"]),
    "other rank": (lambda path: rewrite(path, r=8), ["does not belong to", "--base"]),
    "no numbers": (spoil, ["not finite"]),
    "model is gone": (lambda path: rewrite(path, base_model_name_or_path="/gone/model"), ["/gone/model", "--base"]),
    "no model named": (lambda path: rewrite(path, base_model_name_or_path=None), ["which model", "--base"]),
}


@pytest.mark.parametrize("case", BAD_ADAPTERS)
def test_adapters_that_cannot_be_merged(
    case: str, preferring: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = BAD_ADAPTERS[case]
    adapter = damaged(preferring / "final", tmp_path, change)
    assert cli.main(["merge", str(adapter), "--output", str(tmp_path / "merged")]) == 2
    message = capsys.readouterr().err
    assert [word for word in words if word not in message] == [], message
    assert "Traceback" not in message
    assert not (tmp_path / "merged").exists()


def test_outputs_that_would_be_overwritten(preferring: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final = str(preferring / "final")
    assert cli.main(["merge", final, "--output", final]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["merge", final, final, "--output", "x"]) == 2
    assert "adapter: one at a time" in capsys.readouterr().err

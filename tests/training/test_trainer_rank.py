"""One rank and two, at every ZeRO stage and division into micro-batches: the numbers of plain float64 AdamW."""

import dataclasses
import json
import threading

import numpy as np
import plain_model
import pytest
import torch
from training_cases import (
    DIVISIONS,
    PolicyLoss,
    SquaredError,
    load_counted,
    make_batch,
    make_columns,
    resume,
    run_processes,
    saved_weights,
    start,
    step,
    train_two_ranks,
    trainer_config,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_ray.checkpoint import background
from rlhf_ray.checkpoint.parts import Damaged, hash_file
from rlhf_ray.config.errors import BadInput
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.training.optimizer import deepspeed_settings
from rlhf_ray.training.rank import NonFinite
from rlhf_ray.training.saved_parts import part_name

# A hundredth of one step of the optimizer, which moves weights by up to LEARNING_RATE = 1e-2.
TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def expected(tiny_model):
    """Weights after 0, 1 and 2 steps of the plain_model on the tied model, and its losses."""
    batch = make_batch()
    columns = make_columns(batch)
    weights = []
    history = []
    for steps in (1, 2):
        model = plain_model.load(tiny_model.tied)
        history = plain_model.adamw_steps(model, lambda m: plain_model.policy_loss(m, batch, columns), steps)
        weights.append({name: p.detach().float() for name, p in model.named_parameters()})
    return weights, history


def assert_near(found, wanted, tolerance=TOLERANCE):
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_steps_equal_adamw_by_hand(tiny_model, expected, tmp_path, stage):
    weights, history = expected
    for name, division in DIVISIONS.items():
        trainer = start(tiny_model.tied, stage)
        metrics = [step(trainer, division)]
        trainer.save(str(tmp_path / name / "1"))
        metrics.append(step(trainer, division))
        trainer.save(str(tmp_path / name / "2"))
        for steps in (1, 2):
            assert_near(saved_weights(tmp_path / name / str(steps)), weights[steps - 1])
        for found, (loss, norm) in zip(metrics, history, strict=True):
            assert found["loss"] == pytest.approx(loss, abs=1e-5)
            assert found["grad_norm"] == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_untied_model_and_gradient_checkpointing(tiny_model, tmp_path, stage):
    batch = make_batch()
    columns = make_columns(batch)
    model = plain_model.load(tiny_model.untied)
    plain_model.adamw_steps(model, lambda m: plain_model.policy_loss(m, batch, columns), 1)
    trainer = start(tiny_model.untied, stage, gradient_checkpointing=True)
    step(trainer, DIVISIONS["several"])
    trainer.save(str(tmp_path))
    assert_near(saved_weights(tmp_path), {name: p.detach().float() for name, p in model.named_parameters()})


def test_bfloat16_steps_are_near_float32(tiny_model, expected, tmp_path):
    for stage in (0, 2, 3):
        trainer = start(tiny_model.tied, stage, dtype="bfloat16")
        step(trainer, DIVISIONS["several"])
        trainer.save(str(tmp_path / str(stage)))
        found = saved_weights(tmp_path / str(stage))
        # Weights start rounded to bfloat16 (relative 2 ** -9), and the step differs a little in size.
        errors = torch.cat([(found[name] - value).abs().flatten() for name, value in expected[0][0].items()])
        assert errors.mean() < 5e-4
        assert next(iter(found.values())).dtype == torch.float32


def test_two_ranks_of_every_stage_continue_one_rank(tiny_model, expected, tmp_path):
    weights, history = expected
    trainer = start(tiny_model.tied)
    step(trainer, DIVISIONS["one"])
    trainer.save(str(tmp_path / "one_rank"))
    run_processes(train_two_ranks, 2, tiny_model.tied, tmp_path / "one_rank", tmp_path)
    for stage in (0, 1, 2, 3):
        assert_near(saved_weights(tmp_path / f"first_{stage}"), weights[0])
        assert_near(saved_weights(tmp_path / f"continued_{stage}"), weights[1])
        metrics = torch.load(tmp_path / f"metrics_{stage}.pt")
        assert metrics["loss"] == pytest.approx(history[1][0], abs=1e-5)
        assert metrics["grad_norm"] == pytest.approx(history[1][1], rel=1e-4)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert_near(dict(exported.named_parameters()), weights[1])


def test_storage_gives_each_byte_of_a_saved_state_once(tiny_model, tmp_path):
    """Each rank reads its own part; where another number of ranks wrote, each part goes to one rank."""
    trainer = start(tiny_model.tied)
    step(trainer, DIVISIONS["one"])
    trainer.save(str(tmp_path / "one"))
    run_processes(load_counted, 2, tiny_model.tied, tmp_path)
    for name, parts in {"two": [[part_name(0)], [part_name(1)]], "one": [[part_name(0)], []]}.items():
        ranks = [json.loads((tmp_path / f"{name}_{rank}.json").read_text()) for rank in range(2)]
        assert [opened for opened, _ in ranks] == parts
        read = [tensor for _, tensors in ranks for tensor in tensors if "/" in tensor and "random" not in tensor]
        kinds = ["master", "exp_avg", "exp_avg_sq", *(["average"] if name == "two" else [])]
        assert sorted(read) == sorted(f"{kind}/{key}" for kind in kinds for key in saved_weights(tmp_path / "one"))


@pytest.mark.parametrize("stage", [0, 2])
def test_training_goes_on_while_a_save_is_written_and_does_not_change_it(tiny_model, tmp_path, monkeypatch, stage):
    trainer = start(tiny_model.tied, stage)
    step(trainer, DIVISIONS["one"])
    trainer.average_weights(0.5)
    trainer.save(str(tmp_path / "before"))
    may_write, write = threading.Event(), background.write_tensors
    monkeypatch.setattr(background, "write_tensors", lambda *given: may_write.wait(60) and write(*given))
    trainer.begin_save(str(tmp_path / "beside"))
    step(trainer, DIVISIONS["one"])
    trainer.average_weights(0.5)
    assert trainer.saved(wait=False) is None
    may_write.set()
    (part,) = trainer.saved(wait=True)
    assert part.sha256 == hash_file(str(tmp_path / "before" / part_name(0)))
    trainer.load(str(tmp_path / "beside"), [part])
    with pytest.raises(Damaged, match="does not have the hash"):
        trainer.load(str(tmp_path / "beside"), [dataclasses.replace(part, sha256="0" * 64)])


@pytest.mark.parametrize("stage", [0, 2])
def test_resume_in_a_new_process_is_bit_for_bit(tiny_model, tmp_path, stage):
    trainer = start(tiny_model.tied, stage, schedule="cosine", warmup_steps=3)
    for _ in range(2):
        step(trainer, DIVISIONS["several"])
    trainer.save(str(tmp_path / "half"))
    metrics = [step(trainer, DIVISIONS["several"]) for _ in range(2)]
    trainer.save(str(tmp_path / "whole"))
    (tmp_path / "resumed").mkdir()
    run_processes(resume, 1, tiny_model.tied, tmp_path / "half", tmp_path / "resumed", stage)
    assert torch.load(tmp_path / "resumed" / "metrics.pt") == metrics
    whole = (tmp_path / "whole" / "rank_00000.safetensors").read_bytes()
    assert (tmp_path / "resumed" / "rank_00000.safetensors").read_bytes() == whole


def test_logprobs_and_entropy_in_the_order_asked_for(tiny_model):
    batch = make_batch()
    with torch.no_grad():
        logprobs, entropy = plain_model.policy_outputs(plain_model.load(tiny_model.untied), batch)
    for trainable, stage in [(True, 0), (False, 0), (False, 3)]:
        trainer = start(tiny_model.untied, stage, trainable=trainable)
        division = DIVISIONS["several"]
        index = batch.flat_index(np.concatenate(division))
        found = trainer.logprobs(batch, division, entropy=True)
        np.testing.assert_allclose(found["logprobs"], logprobs.numpy()[index], atol=2e-5)
        np.testing.assert_allclose(found["entropy"], entropy.numpy()[index], atol=2e-5)


def test_first_token_without_a_prompt_counts_nothing(tiny_model):
    ids = np.array([10, 20, 30], dtype=np.int32)
    trainer = start(tiny_model.untied, trainable=False)
    rows = [np.array([0])]
    whole = trainer.logprobs(TokenBatch.from_sequences([ids[:0]], [ids]), rows)["logprobs"]
    rest = trainer.logprobs(TokenBatch.from_sequences([ids[:1]], [ids[1:]]), rows)["logprobs"]
    assert whole[0] == 0
    np.testing.assert_allclose(whole[1:], rest, atol=1e-6)


def test_critic_and_reward_read_the_head_where_they_should(tiny_model, tmp_path):
    batch = make_batch()
    critic = start(tiny_model.tied, kind="critic")
    before = critic.values(batch, DIVISIONS["one"])
    metrics = step(critic, DIVISIONS["several"], SquaredError())
    columns = make_columns(batch)
    loss = (columns["weight"] * (before - columns["target"]) ** 2).sum()
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    critic.export(str(tmp_path / "reward"))

    model = plain_model.load_scalar(tmp_path / "reward")
    ids, mask = plain_model.padded(batch)
    with torch.no_grad():
        scalars = model.score(model.model(input_ids=ids, attention_mask=mask).last_hidden_state).squeeze(-1)
    places = zip(batch.prompt_lengths, batch.response_lengths, strict=True)
    values = torch.cat([scalars[row, p - 1 : p + r - 1] for row, (p, r) in enumerate(places)])
    np.testing.assert_allclose(critic.values(batch, DIVISIONS["one"]), values.numpy(), atol=1e-5)

    # A reward model keeps its head when a critic starts from it.
    reward = start(tmp_path / "reward", kind="reward", trainable=False)
    scores = scalars[torch.arange(batch.rows), torch.from_numpy(batch.lengths).long() - 1]
    division = DIVISIONS["several"]
    np.testing.assert_allclose(
        reward.scores(batch, division), scores.numpy()[np.concatenate(division).astype(int)], atol=1e-5
    )


def test_export_replaces_whole_and_loads_plainly(tiny_model, tmp_path):
    target = tmp_path / "final"
    target.mkdir()
    (target / "old.txt").write_text("old")
    trainer = start(tiny_model.untied, 3)
    step(trainer, DIVISIONS["one"])
    trainer.export(str(target))
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert not (target / "old.txt").exists()
    model = AutoModelForCausalLM.from_pretrained(target).double()
    assert AutoTokenizer.from_pretrained(target).chat_template is not None
    batch = make_batch()
    with torch.no_grad():
        logprobs, _ = plain_model.policy_outputs(model, batch)
    np.testing.assert_allclose(trainer.logprobs(batch, DIVISIONS["one"])["logprobs"], logprobs.numpy(), atol=2e-5)


@dataclasses.dataclass(frozen=True)
class _Broken(PolicyLoss):
    """A loss, or only its gradient, that is not finite."""

    where: str = "loss"

    def __call__(self, outputs, columns):
        loss, metrics = super().__call__(outputs, columns)
        if self.where == "loss":
            return loss / 0.0, metrics
        # sqrt(0) is 0 with an infinite gradient
        return loss + ((outputs["logprobs"] * 0.0).sum()).abs().sqrt(), metrics


@pytest.mark.parametrize(("where", "stage"), [("loss", 0), ("gradient", 0), ("loss", 2), ("gradient", 2)])
def test_non_finite_numbers_stop_with_the_place(tiny_model, tmp_path, where, stage):
    trainer = start(tiny_model.tied, stage)
    step(trainer, DIVISIONS["one"])
    with pytest.raises(NonFinite, match=r"policy rank 0, optimizer step 2: the (loss|norm)") as error:
        step(trainer, DIVISIONS["one"], _Broken(where))
    assert where in str(error.value)
    if (where, stage) == ("gradient", 2):
        with pytest.raises(NonFinite):
            trainer.save(str(tmp_path / "spoiled"))


def test_gradients_are_summed_in_float32_and_overlap_the_backward_pass_on_gpus():
    def settings(stage: int, **given: object):
        return deepspeed_settings(trainer_config(stage, **given), "bfloat16", world=2, trainable=True)

    assert settings(3)["communication_data_type"] == "fp32"
    assert settings(3, deepspeed={"communication_data_type": "bf16"})["communication_data_type"] == "bf16"
    overlaps = {
        (stage, gpus): settings(stage, gpus_per_worker=gpus)["zero_optimization"]["overlap_comm"]
        for stage in (1, 2, 3)
        for gpus in (0, 1)
    }
    assert [place for place, overlap in overlaps.items() if overlap] == [(2, 1), (3, 1)]


def test_contradicting_deepspeed_settings_are_refused(tiny_model):
    with pytest.raises(BadInput, match="zero_stage"):
        start(tiny_model.tied, 1, deepspeed={"zero_optimization": {"stage": 2}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reduce_bucket_size": "big"}, r"deepspeed: DeepSpeedZeroConfig: reduce_bucket_size: .* .given: 'big'."),
        ({"reduce_bucket_sise": 1}, "deepspeed: DeepSpeedZeroConfig: reduce_bucket_sise: "),
    ],
)
def test_what_deepspeed_refuses_is_the_users_to_mend(tiny_model, settings, message):
    with pytest.raises(BadInput, match=message):
        start(tiny_model.tied, 1, deepspeed={"zero_optimization": settings})


def test_exported_reward_model_is_a_plain_classifier(tiny_model, tmp_path):
    start(tiny_model.tied, kind="reward").export(str(tmp_path / "out"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.num_labels == 1
    assert model.score.weight.abs().sum() > 0

"""Losses of preferences equal TRL's `compute_loss`: one model in memory, float32, the same batch; gradients too."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.losses import Loss
from rlhf_ray.algorithms.preference_losses import KTOLoss, PreferenceLoss, aot_statistic, kto_baseline
from rlhf_ray.algorithms.preferences import PreferenceObjective
from rlhf_ray.algorithms.segments import row_sums
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.models.heads import PolicyNetwork
from rlhf_ray.training.microbatch import build_microbatch, select_columns

trl = pytest.importorskip("trl", reason="TRL is installed to compare with: pip install --no-deps trl==1.16.0")

TOLERANCE = 1e-5
BETA = 0.3
PAIRS = [
    {"prompt": "The film", "chosen": " was wonderful and I would watch it again.", "rejected": " was bad."},
    {"prompt": "My box arrived", "chosen": " late.", "rejected": " broken, and nobody answered."},
    {"prompt": "这部电影", "chosen": "很好看，演员也很棒。", "rejected": "质量一般。"},
    {"prompt": "Great value", "chosen": " for the money!", "rejected": " for nobody at all!"},
]
LABELLED = [
    {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
    for pair, side in zip(PAIRS, ("chosen", "rejected", "chosen", "chosen"), strict=True)
]


@pytest.fixture(scope="module")
def models(tiny_model: Any) -> tuple[nn.Module, nn.Module, Any]:
    """A policy that has moved, the reference that it began from, and their tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = AutoModelForCausalLM.from_pretrained(tiny_model.tied, dtype=torch.float32)
    policy = copy.deepcopy(reference)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return policy, reference, AutoTokenizer.from_pretrained(tiny_model.tied)


def batch_of(inputs: dict[str, Tensor], prefix: str = "") -> TokenBatch:
    """TRL's padded batch as ours: the completion mask says where each response begins."""
    prompts, responses = [], []
    for ids, mask, attended in zip(
        *(inputs[prefix + name] for name in ("input_ids", "completion_mask", "attention_mask")), strict=True
    ):
        start, end = int(mask.argmax()), int(attended.sum())
        prompts.append(ids[:start].numpy())
        responses.append(ids[start:end].numpy())
    return TokenBatch.from_sequences(prompts, responses)


def logprobs_of(network: nn.Module, batch: TokenBatch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities of tokens and their sums, and the columns that every loss reads, packed without padding."""
    microbatch = build_microbatch(batch, range(batch.rows), packed=True, device=torch.device("cpu"))
    # A row of the Chinese pair may have no prompt: TRL takes it away where its tokens merge with the response's.
    outputs = PolicyNetwork(network)(
        microbatch.input_ids,
        microbatch.position_ids,
        microbatch.before,
        microbatch.targets,
        microbatch.without_context,
    )
    found = outputs["logprobs"]
    columns = select_columns(microbatch, {"written": batch.written}, {})
    return found, row_sums(found, columns["rows"], batch.rows), columns


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def assert_equal(
    loss: Loss, trainer: Any, inputs: dict[str, Tensor], policy: nn.Module, row_columns: dict[str, Tensor]
) -> None:
    """Compare value and gradient of our loss and TRL's."""
    trainer.model.train()
    theirs = trainer.compute_loss(trainer.model, inputs)
    trainer.model.zero_grad()
    theirs.backward()
    their_gradients = gradients(trainer.model)
    own = copy.deepcopy(policy)
    outputs, _, columns = logprobs_of(own, batch_of(inputs))
    ours, _ = loss({"logprobs": outputs}, columns | row_columns)
    ours.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=TOLERANCE)
    found = gradients(own)
    assert found.keys() == their_gradients.keys()
    for name, expected in their_gradients.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=TOLERANCE)
    assert max(value.abs().max() for value in found.values()) > 100 * TOLERANCE


def trainer_of(kind: str, models: tuple[nn.Module, nn.Module, Any], folder: Any, rows: list[Any], **more: Any) -> Any:
    from datasets import Dataset

    policy, reference, tokenizer = models
    config = {"dpo": trl.DPOConfig, "kto": trl.KTOConfig}[kind](
        output_dir=str(folder),
        per_device_train_batch_size=len(rows),
        beta=BETA,
        report_to=[],
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        **more,
    )
    make = {"dpo": trl.DPOTrainer, "kto": trl.KTOTrainer}[kind]
    return make(
        model=copy.deepcopy(policy),
        # TRL puts a forward function of its own in the place of the model's.
        ref_model=copy.deepcopy(reference),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def pair_columns(pairs: int) -> dict[str, Tensor]:
    """TRL's batch has all chosen answers first."""
    return {
        "weight": torch.full((2 * pairs,), 1 / pairs),
        "group": torch.arange(pairs).repeat(2),
        "rank": torch.arange(2).repeat_interleave(pairs),
    }


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "hinge", "robust", "apo_zero", "apo_down", "aot", "discopop"])
def test_pairs(kind: str, models: tuple[nn.Module, nn.Module, Any], tmp_path: Any) -> None:
    smoothing = 0.1 if kind in ("robust", "aot") else 0.0
    trainer = trainer_of("dpo", models, tmp_path, PAIRS, loss_type=[kind], label_smoothing=smoothing)
    inputs = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        _, reference, _ = logprobs_of(copy.deepcopy(models[1]), batch_of(inputs))
        _, policy, _ = logprobs_of(copy.deepcopy(models[0]), batch_of(inputs))
    row_columns = pair_columns(len(PAIRS)) | {"reference_logprobs": reference}
    if kind == "aot":
        statistic = aot_statistic(*policy.chunk(2), *reference.chunk(2))
        row_columns["aot_statistic"] = torch.cat([statistic, statistic])
    objective = PreferenceObjective(kind, BETA, label_smoothing=smoothing)
    assert_equal(PreferenceLoss(((objective, 1.0),)), trainer, inputs, models[0], row_columns)


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
def test_single_answers(kind: str, models: tuple[nn.Module, nn.Module, Any], tmp_path: Any) -> None:
    weights = {"desirable_weight": 1.2, "undesirable_weight": 0.7}
    trainer = trainer_of("kto", models, tmp_path, LABELLED, loss_type=kind, **weights)
    inputs = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        _, reference, _ = logprobs_of(copy.deepcopy(models[1]), batch_of(inputs))
    row_columns = {
        "weight": torch.full((len(LABELLED),), 1 / len(LABELLED)),
        "desirable": inputs["label"],
        "reference_logprobs": reference,
    }
    if kind == "kto":
        with torch.no_grad():
            pair = [logprobs_of(copy.deepcopy(model), batch_of(inputs, "KL_"))[1] for model in models[:2]]
        baseline = kto_baseline(*pair)
        assert baseline > 0, "or nothing is compared"
        row_columns["kto_statistic"] = baseline.expand(len(LABELLED))
    assert_equal(KTOLoss(BETA, **weights, kind=kind), trainer, inputs, models[0], row_columns)

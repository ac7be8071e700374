"""A reward model in this process: its scores are those that Transformers gives for the same ids."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import rlhf_ray
from tests.conftest import TinyModel


@pytest.fixture(scope="module")
def model(tiny_reward_model: Path) -> rlhf_ray.RewardModel:
    return rlhf_ray.RewardModel(tiny_reward_model)


def expected(tiny_reward_model: Path, texts: Sequence[str]) -> list[float]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(tiny_reward_model, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_reward_model)
    with torch.inference_mode():
        return [network(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


def test_texts_and_prompts_with_completions(model: rlhf_ray.RewardModel, tiny_reward_model: Path) -> None:
    texts = ["The film was wonderful.<|end|>", "质量一般，有点失望。<|end|>"]
    scores = model.score(["The film", "质量一般，"], [" was wonderful.", "有点失望。"])
    assert scores == pytest.approx(expected(tiny_reward_model, texts), abs=1e-5)
    assert model.score(["The film was wonderful.", "质量一般，有点失望。"]) == pytest.approx(scores, abs=1e-6)


def test_conversations(model: rlhf_ray.RewardModel, tiny_reward_model: Path) -> None:
    asked = [{"role": "user", "content": "How was it?"}]
    wanted = expected(tiny_reward_model, ["<|user|>How was it?<|end|><|assistant|>Great!<|end|>"])
    assert model.score([asked], ["Great!"]) == pytest.approx(wanted, abs=1e-5)
    assert model.score([[*asked, {"role": "assistant", "content": "Great!"}]]) == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ("one text", None, "lists of texts, not one text"),
        (["a", "b"], ["c"], "2 prompts, but 1 completions"),
        ([[{"role": "user", "content": "x"}]], None, "ends with a message of the assistant"),
    ],
)
def test_what_cannot_be_scored_is_refused(
    model: rlhf_ray.RewardModel, prompts: list[str], completions: list[str] | None, message: str
) -> None:
    with pytest.raises(rlhf_ray.BadInput, match=message):
        model.score(prompts, completions)


def test_a_score_that_is_no_number_is_never_returned(tiny_reward_model: Path) -> None:
    model = rlhf_ray.RewardModel(tiny_reward_model)
    model._scorer._networks[0].network.score.weight.data.fill_(math.nan)
    with pytest.raises(rlhf_ray.RlhfError, match="text 0: the reward model gave nan"):
        model.score(["text"])


def test_a_model_that_is_none_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(rlhf_ray.BadInput):
        rlhf_ray.RewardModel(tiny_model.tied)
    with pytest.raises(rlhf_ray.BadInput, match="dtype"):
        rlhf_ray.RewardModel(tmp_path, dtype="float12")  # type: ignore[arg-type]

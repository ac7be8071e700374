"""A reward model in this process: its scores are those that Transformers gives for the same ids."""

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import rlhf_ray
from tests.conftest import TinyModel


@pytest.fixture(scope="module")
def directory(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

    path = tmp_path_factory.mktemp("reward") / "final"
    set_seed(1)
    network = AutoModelForSequenceClassification.from_pretrained(tiny_model.tied, num_labels=1, dtype="float32")
    network.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_model.tied).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(directory: Path) -> rlhf_ray.RewardModel:
    return rlhf_ray.RewardModel(directory)


def expected(directory: Path, texts: Sequence[str]) -> list[float]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    network = AutoModelForSequenceClassification.from_pretrained(directory, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.inference_mode():
        return [network(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]


def test_texts_and_prompts_with_completions(model: rlhf_ray.RewardModel, directory: Path) -> None:
    texts = ["The film was wonderful.<|end|>", "质量一般，有点失望。<|end|>"]
    scores = model.score(["The film", "质量一般，"], [" was wonderful.", "有点失望。"])
    assert scores == pytest.approx(expected(directory, texts), abs=1e-5)
    assert model.score(["The film was wonderful.", "质量一般，有点失望。"]) == pytest.approx(scores, abs=1e-6)


def test_conversations(model: rlhf_ray.RewardModel, directory: Path) -> None:
    asked = [{"role": "user", "content": "How was it?"}]
    wanted = expected(directory, ["<|user|>How was it?<|end|><|assistant|>Great!<|end|>"])
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


def test_a_score_that_is_no_number_is_never_returned(directory: Path) -> None:
    model = rlhf_ray.RewardModel(directory)
    model._scorer._networks[0].network.score.weight.data.fill_(math.nan)
    with pytest.raises(rlhf_ray.RlhfError, match="text 0: the reward model gave nan"):
        model.score(["text"])


def test_a_model_that_is_none_is_refused(tiny_model: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(rlhf_ray.BadInput):
        rlhf_ray.RewardModel(tiny_model.tied)
    with pytest.raises(rlhf_ray.BadInput, match="dtype"):
        rlhf_ray.RewardModel(tmp_path, dtype="float12")  # type: ignore[arg-type]

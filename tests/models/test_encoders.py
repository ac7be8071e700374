"""Encoders: a new head by the seed, and what they cannot be."""

from pathlib import Path

import pytest
import torch

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.heads import attention_mask
from rlhf_ray.models.loading import load_scalar, load_tokenizer, outline
from rlhf_ray.models.positions import longest_text
from rlhf_ray.runs.model_checks import check_critic, check_scalar
from tests.tiny_encoder import LONGEST


def model(path: Path) -> ModelConfig:
    return ModelConfig(path=str(path), dtype="float32")


def test_all_of_a_new_head_is_drawn_by_the_seed(tiny_encoder: Path) -> None:
    before = torch.get_rng_state()
    first, again, other = (load_scalar(model(tiny_encoder), seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before), "drawing a head leaves the process's random numbers alone"
    for name in ("classifier.weight", "bert.pooler.dense.weight"):
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


def test_the_mask_ends_at_each_rows_last_token() -> None:
    mask = attention_mask(torch.zeros(3, 4, dtype=torch.long), torch.tensor([0, 4 + 3, 8 + 1]))
    assert mask.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]


def test_texts_longer_than_an_encoder_reads_are_refused(tiny_encoder: Path) -> None:
    tokenizer = load_tokenizer(model(tiny_encoder))
    assert longest_text(outline(model(tiny_encoder), scalar=True)) == LONGEST
    check_scalar(model(tiny_encoder), tokenizer, {"data.max_tokens": LONGEST})
    with pytest.raises(
        BadInput, match=f"has positions for {LONGEST} tokens .* set data.max_tokens to {LONGEST} or less"
    ):
        check_scalar(model(tiny_encoder), tokenizer, {"data.max_tokens": LONGEST + 1})


def test_an_encoder_is_no_critic(tiny_encoder: Path, tiny_model) -> None:
    with pytest.raises(BadInput, match="can be a reward model but no critic"):
        load_scalar(model(tiny_encoder), 0, per_token=True)
    policy = model(tiny_model.tied)
    with pytest.raises(BadInput, match="can be a reward model but no critic"):
        check_critic("critics.value.path", model(tiny_encoder), policy, load_tokenizer(policy), {})

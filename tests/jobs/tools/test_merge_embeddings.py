"""Adapters of PEFT on embeddings, on the output layer, or with more tokens: merged as PEFT computes with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf_ray.jobs.tools.merge import merge, read_adapter

ROWS = 8
IDS = torch.arange(5, 17)[None]


@pytest.mark.parametrize(
    ("settings", "added"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, 0),
        ({"target_modules": ["q_proj", "embed_tokens"]}, 0),
        ({"modules_to_save": ["lm_head"]}, 0),
        ({"modules_to_save": ["embed_tokens"]}, 0),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, 0),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, ROWS),
        ({}, ROWS),
        ({"trainable_token_indices": [5, 6]}, 0),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_merged_answers_as_the_adapter_does(
    settings: dict[str, Any], added: int, tied: bool, tiny_model: Any, tmp_path: Path
) -> None:
    base = str(tiny_model.tied if tied else tiny_model.untied)

    def network() -> Any:
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)

    torch.manual_seed(0)
    grown = network()
    if added:
        grown.resize_token_embeddings(grown.config.vocab_size + added, mean_resizing=False)
    adapted = get_peft_model(
        grown, LoraConfig(**({"target_modules": ["q_proj"]} | settings), task_type="CAUSAL_LM", r=2)
    )
    with torch.no_grad():
        for weight in adapted.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.eval()(input_ids=IDS).logits
    found_settings, tensors = read_adapter(tmp_path / "adapter")
    merged = merge(network(), found_settings, tensors, "adapter")
    merged.save_pretrained(tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

"""Exported language models stop, in plain Transformers, where their chat template ends a turn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.tokenization import Encoder
from rlhf_ray.models.loading import load_policy, load_scalar, load_tokenizer
from rlhf_ray.models.tiny import build_tokenizer
from rlhf_ray.training.export import export
from tests.tiny_sentencepiece import build_llama

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def model(tmp_path: Path) -> ModelConfig:
    """One whose EOS is another token than the one that ends a turn, and whose own settings name a third."""
    tokenizer = build_tokenizer(["hello how are you"], 300)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|stop|>"]})
    tokenizer.chat_template = CHATML
    build_llama(tmp_path / "base", tokenizer)
    network = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    network.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids("<|stop|>")
    network.save_pretrained(tmp_path / "base")
    return ModelConfig(path=str(tmp_path / "base"), dtype="float32")


@pytest.mark.parametrize("end", ["<|im_end|>", "<|end|>", "<|stop|>"])
def test_an_exported_model_stops_at_every_end_of_a_turn(model: ModelConfig, tmp_path: Path, end: str) -> None:
    export(load_policy(model), model, str(tmp_path / "final"), rank=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "final")
    network: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "final")
    last = tokenizer.convert_tokens_to_ids(end)
    assert last in network.generation_config.eos_token_id
    assert last in Encoder(load_tokenizer(model)).all_ends(network)

    def write(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, last if ids.shape[1] == 5 else 70] = 0
        return forced

    given = torch.tensor([[65, 66, 67]])
    written = network.generate(given, max_new_tokens=9, do_sample=False, logits_processor=[write])
    assert written[0, 3:].tolist() == [70, 70, last]


def test_a_reward_model_is_exported_as_before(model: ModelConfig, tmp_path: Path) -> None:
    export(load_scalar(model, seed=0), model, str(tmp_path / "final"), rank=0)
    assert not (tmp_path / "final" / "generation_config.json").exists()

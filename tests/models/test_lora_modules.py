"""Adapters in networks of several architectures."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.lora import add_adapter, composed_weights, files_settings, has_adapter, head_names, target_names
from rlhf_ray.training.export import adapter_files

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}


def language_model(kind="qwen2", **settings):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | settings))


def trained(network):
    return {name for name, p in network.named_parameters() if p.requires_grad}


def test_an_adapter_is_the_same_on_all_ranks_and_disturbs_no_random_numbers():
    found = []
    for rank in (0, 1):
        network = language_model()
        torch.manual_seed(rank)
        before = torch.get_rng_state()
        add_adapter(network, LoraConfig(), seed=3)
        assert torch.equal(before, torch.get_rng_state())
        found.append({name: p for name, p in network.named_parameters() if p.requires_grad})
    assert has_adapter(network)
    assert all(".lora_" in name for name in found[0])
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt_neox"])
def test_all_linear_layers_of_the_blocks(kind):
    network = language_model(kind)
    linear = {name for name, module in network.base_model.named_modules() if isinstance(module, torch.nn.Linear)}
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    add_adapter(network, LoraConfig(r=2), seed=0)
    adapted = {name.partition(".lora_A")[0] for name in trained(network) if ".lora_A" in name}
    assert {name.removeprefix(f"{network.base_model_prefix}.") for name in adapted} == linear
    assert {name: weight.shape for name, weight in composed_weights(network).items()} == shapes


def test_a_head_with_layers_of_the_same_names_is_trained_whole():
    """An encoder's head has a `dense` as its blocks do."""
    config = AutoConfig.for_model("roberta", num_labels=1, **SMALL)
    network = AutoModelForSequenceClassification.from_config(config)
    assert head_names(network) == {"classifier"}
    add_adapter(network, LoraConfig(), seed=0)
    in_head = {name for name in trained(network) if name.startswith("classifier.")}
    assert in_head == {name for name, _ in network.named_parameters() if name.startswith("classifier.")}
    assert not any(".lora_" in name for name in in_head)
    described = files_settings(network, "base")
    assert (described.task_type, described.modules_to_save) == ("SEQ_CLS", ["classifier"])


def test_layers_that_are_not_there():
    with pytest.raises(BadInput, match=r"lora\.target_modules: no linear layer of qwen2 is named 'c_attn'; it has"):
        target_names(language_model(), LoraConfig(target_modules=["c_attn"]))
    with pytest.raises(BadInput, match="gpt2 is not supported: it has no linear layers"):
        target_names(AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=1)), LoraConfig())


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_layers_outside_of_the_blocks_are_refused_for_what_they_are(target):
    with pytest.raises(
        BadInput, match=f"'{target}' is an embedding or the output layer, and adapters are on layers of the"
    ):
        target_names(language_model(), LoraConfig(target_modules=["q_proj", target]))


def test_files_of_an_adapter_are_small():
    """Blocks of the shape of Qwen2.5-0.5B with a fifth of its vocabulary; no weight is computed with."""
    shape = {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_key_value_heads": 2}
    with torch.device("meta"):
        network = language_model(**shape, num_hidden_layers=6, vocab_size=32000, tie_word_embeddings=True)
    whole = sum(p.numel() for p in network.parameters()) * 4
    network.to_empty(device="cpu")
    add_adapter(network, LoraConfig(), seed=0)
    files = adapter_files(network, ModelConfig(path="base"), keep=True)
    assert sum(map(len, files.values())) < 0.05 * whole

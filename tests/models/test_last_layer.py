"""The last layer computed at one token of each text: the scores and gradients of the whole network."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.heads import PolicyNetwork, ScalarNetwork
from rlhf_ray.models.loading import load_policy, load_scalar


@pytest.fixture
def scalar(tiny_model: Any) -> Any:
    """In float64: some of its gradients are sums that nearly cancel, where float32 shows the order of summing."""
    return load_scalar(ModelConfig(path=str(tiny_model.untied), dtype="float32"), seed=0).double()


IDS = torch.arange(24).reshape(3, 8) % 7 + 5
LAST = torch.tensor([7, 8 + 2, 16 + 5])


def gradients(network: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


def test_scores_and_gradients_are_those_of_the_whole_network(scalar: Any) -> None:
    whole = copy.deepcopy(scalar)
    hidden = whole.model(input_ids=IDS).last_hidden_state.flatten(0, 1)
    expected = whole.score(hidden[LAST]).squeeze(-1)
    network = ScalarNetwork(scalar)
    found = network(IDS, None, LAST)
    weights = torch.tensor([1.0, -2.0, 0.5])
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)  # scores leave the head in float32
    wanted = gradients(whole, (expected * weights).sum())
    torch.testing.assert_close(gradients(network, (found * weights).sum()), wanted, atol=1e-6, rtol=1e-4)


def test_log_probabilities_and_gradients_are_those_of_the_whole_network(tiny_model: Any) -> None:
    network = PolicyNetwork(load_policy(ModelConfig(path=str(tiny_model.tied), dtype="float32")))
    before = torch.tensor([3, 4, 5, 8 + 1, 16 + 2, 16 + 3])
    outputs = []
    for positions in (before, torch.arange(24)):
        targets = IDS.flatten()[(positions + 1) % 24]
        found = network(IDS, None, positions, targets)["logprobs"]
        found = found if len(found) == len(before) else found[before]
        outputs.append((found, gradients(network, (found * torch.linspace(-1, 1, 6)).sum())))
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)


def test_only_the_tokens_that_are_read_are_computed(scalar: Any) -> None:
    seen: dict[str, int] = {}
    layers = scalar.model.layers
    for name, module in (("last", layers[-1].mlp.down_proj), ("first", layers[0].mlp.down_proj)):
        module.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs[0].numel()}))
    network = ScalarNetwork(scalar)
    network(IDS, None, LAST)
    assert seen["last"] * 8 == seen["first"], "one token of each row of eight"
    network(IDS, None, torch.arange(24))
    assert seen["last"] == seen["first"], "a critic reads all tokens"


def test_recomputed_activations_are_of_the_same_tokens(scalar: Any) -> None:
    whole = copy.deepcopy(scalar)
    hidden = whole.model(input_ids=IDS).last_hidden_state.flatten(0, 1)
    wanted = gradients(whole, whole.score(hidden[LAST]).sum())
    scalar.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    network = ScalarNetwork(scalar).train()
    torch.testing.assert_close(gradients(network, network(IDS, None, LAST).sum()), wanted, atol=1e-6, rtol=1e-4)


def test_an_architecture_of_other_names_is_left_alone() -> None:
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, num_labels=1, resid_pdrop=0.0)
    torch.manual_seed(0)
    plain = GPT2ForSequenceClassification(config).eval()
    expected = plain.score(plain.transformer(input_ids=IDS).last_hidden_state.flatten(0, 1)[LAST]).squeeze(-1)
    torch.testing.assert_close(ScalarNetwork(plain)(IDS, None, LAST), expected, atol=1e-6, rtol=1e-5)

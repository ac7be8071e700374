"""Rows end to end, with prompts that they share: the numbers of each row alone."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.models.heads import PolicyNetwork, ScalarNetwork
from rlhf_ray.models.ragged_attention import MODEL_TYPES, takes_ragged_rows
from rlhf_ray.training.ragged import lay_out_ragged

CPU = torch.device("cpu")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 50,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}


def tiny_config(model_type: str, **settings: Any) -> Any:
    return AutoConfig.for_model(model_type, **SIZES | {"sliding_window": None} | settings)


def make_network(model_type: str, auto: Any = AutoModelForCausalLM, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = tiny_config(model_type, initializer_range=0.2, **settings)
    return auto.from_config(config, attn_implementation="sdpa").double().eval()


def make_batch() -> TokenBatch:
    """Two prompts with several answers, one of them empty and two the same; one prompt of its own; rows without one."""
    draw = np.random.default_rng(0)
    shared, other, own, none = (draw.integers(1, 50, size).astype(np.int32) for size in (6, 3, 4, 0))
    sizes = [(shared, 5), (other, 2), (none, 4), (shared, 1), (own, 7), (other, 9), (shared, 0), (none, 3), (shared, 5)]
    responses = [draw.integers(1, 50, size).astype(np.int32) for _, size in sizes]
    responses[-1] = responses[0]
    return TokenBatch.from_sequences([prompt for prompt, _ in sizes], responses)


ROWS = np.array([3, 0, 5, 8, 7, 4, 2, 1, 6])


def ragged_outputs(network: PolicyNetwork, batch: TokenBatch, rows: np.ndarray) -> dict[str, torch.Tensor]:
    laid = lay_out_ragged(batch, rows, CPU)
    inputs = (laid.input_ids, laid.position_ids, laid.before, laid.targets, laid.without_context)
    return network(*inputs, temperature=0.7, need_entropy=True, ragged=laid.ragged)


def alone(network: Any, batch: TokenBatch, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Each row by itself, by Transformers' own forward pass; what has no context counts 0."""
    found: dict[str, list[torch.Tensor]] = {"logprobs": [], "entropy": []}
    for row in rows:
        ids = torch.from_numpy(batch.ids[batch.offsets[row] : batch.offsets[row + 1]].astype(np.int64))
        log_p = (network(input_ids=ids[None]).logits[0] / 0.7).log_softmax(-1)
        prompt = int(batch.prompt_lengths[row])
        for place in range(prompt, len(ids)):
            before = log_p[place - 1] if place else log_p[0] * 0
            found["logprobs"].append(before[ids[place]])
            found["entropy"].append(-(before.exp() * before).sum())
    return {name: torch.stack(values) for name, values in found.items()}


def gradients(network: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(network.parameters())))


def weighted(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = torch.linspace(-1, 1, len(outputs["logprobs"]), dtype=torch.float64)
    return (weights * outputs["logprobs"]).sum() + (weights.flip(0) * outputs["entropy"]).sum()


@pytest.mark.parametrize("model_type", sorted(MODEL_TYPES))
def test_outputs_and_gradients_are_those_of_each_row_alone(model_type: str) -> None:
    network, batch = make_network(model_type, tie_word_embeddings=False), make_batch()
    expected = alone(network, batch, ROWS)
    wanted = gradients(network, weighted(expected))
    policy = PolicyNetwork(network)
    assert policy.takes_ragged_rows
    found = ragged_outputs(policy, batch, ROWS)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients(network, weighted(found)), wanted, atol=1e-5, rtol=1e-4)


def test_recomputed_activations_are_of_the_same_rows() -> None:
    network, batch = make_network("qwen2"), make_batch()
    wanted = gradients(network, weighted(alone(network, batch, ROWS)))
    network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = PolicyNetwork(network).train()
    found = gradients(network, weighted(ragged_outputs(policy, batch, ROWS)))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("read", ["before", "last"])
def test_scalars_are_those_of_each_row_alone(read: str) -> None:
    """Values of a critic, before each token; scores of a reward model, at the last one."""
    network, batch = make_network("qwen2", AutoModelForSequenceClassification, num_labels=1), make_batch()
    rows = np.array([3, 0, 5, 8, 4, 1])
    expected = []
    for row in rows:
        ids = torch.from_numpy(batch.ids[batch.offsets[row] : batch.offsets[row + 1]].astype(np.int64))
        scores = network.score(network.model(input_ids=ids[None]).last_hidden_state[0]).squeeze(-1)
        expected.append(scores[batch.prompt_lengths[row] - 1 : -1] if read == "before" else scores[-1:])
    weights = torch.linspace(-1, 2, sum(map(len, expected)), dtype=torch.float64)
    wanted = gradients(network, (torch.cat(expected) * weights).sum())
    laid = lay_out_ragged(batch, rows, CPU)
    found = ScalarNetwork(network)(laid.input_ids, laid.position_ids, getattr(laid, read), laid.ragged)
    torch.testing.assert_close(found, torch.cat(expected).float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradients(network, (found.double() * weights).sum()), wanted, atol=1e-6, rtol=1e-6)


def test_a_shared_prompt_is_computed_once() -> None:
    network, batch = make_network("qwen2"), make_batch()
    seen: list[int] = []
    network.model.layers[0].mlp.down_proj.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape[1]))
    ragged_outputs(PolicyNetwork(network), batch, ROWS)
    assert seen == [6 + 3 + 4 + int(batch.response_lengths.sum())]


def test_other_inputs_are_computed_as_before() -> None:
    """Padded rows, rows packed by their positions, and masks that are given."""
    plain, network = make_network("qwen2"), make_network("qwen2")
    PolicyNetwork(network)
    ids = torch.arange(24).reshape(3, 8)
    packed = {"input_ids": ids.reshape(1, -1), "position_ids": (torch.arange(24) % 6)[None]}
    masked = {"input_ids": ids, "attention_mask": (torch.arange(8) > 1).long().expand(3, 8)}
    for inputs in ({"input_ids": ids}, packed, masked):
        found, expected = (model.model(**inputs, use_cache=False).last_hidden_state for model in (network, plain))
        torch.testing.assert_close(found, expected, atol=0, rtol=0)


def test_what_is_saved_does_not_name_it(tmp_path: Any) -> None:
    network = make_network("llama")
    PolicyNetwork(network)
    network.save_pretrained(tmp_path)
    assert "ragged" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


@pytest.mark.parametrize(
    ("model_type", "settings", "implementation"),
    [
        ("mistral", {"sliding_window": 16}, "sdpa"),
        ("qwen2", WINDOWS, "sdpa"),
        ("qwen3", WINDOWS, "sdpa"),
        ("gemma2", {}, "sdpa"),
        ("gpt2", {}, "sdpa"),
        ("qwen3_next", {}, "sdpa"),
        ("bert", {}, "sdpa"),
        ("llama", {}, "eager"),
        ("llama", {}, "flash_attention_2"),
    ],
)
def test_networks_that_would_compute_something_else_are_left_alone(
    model_type: str, settings: dict[str, Any], implementation: str
) -> None:
    """Windows, linear attention, learned positions, encoders, other kernels."""
    assert not takes_ragged_rows(tiny_config(model_type, **settings), implementation)

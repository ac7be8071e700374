"""Every architecture: log-probabilities, gradients and scores as of plain Transformers, or refused with the reason."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from families import LENGTHS, texts, tiny_network
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.coherence import check_coherence
from rlhf_ray.models.heads import PolicyNetwork, ScalarNetwork
from rlhf_ray.models.loading import COMMON_TYPES, scalar_config
from rlhf_ray.models.logit_transform import LogitTransform, UnknownTransform, measure_transform
from rlhf_ray.models.positions import longest_text
from rlhf_ray.training.network import check_network

COMMON = [
    "biogpt",
    "bloom",
    "cohere",
    "cohere2",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gemma4",
    "gemma4_text",
    "glm4",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo2",
    "olmo3",
    "opt",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
]
OTHERS = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys() - set(COMMON))
MASKED = [
    "bert",
    "big_bird",
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "megatron-bert",
    "modernbert-decoder",
    "rembert",
    "roberta",
    "roberta-prelayernorm",
    "roc_bert",
    "roformer",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
]
"""Their output layers have layers before them, as those of models that fill masks."""
REFUSED = dict.fromkeys(MASKED, "what lies between its last layer and its logits is not known") | {
    "cpmant": "it answers otherwise than alone",
    "llama4_text": "its layers cannot be called apart from its output layer",
}
MOST_PARAMETERS = 3e7
"""A network with more of them, whose sizes cannot be told, is left to the probe of a run."""
CPU = torch.device("cpu")

SHARE = 0.3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Work on tiny tensors by several threads takes longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def alone(network: Any) -> torch.Tensor:
    """Log-probabilities of all tokens but the first of each text, by Transformers' own forward pass."""
    found = []
    for ids in texts():
        log_p = network(input_ids=ids[None], use_cache=False).logits[0].float().log_softmax(-1)
        found.append(log_p[:-1].gather(1, ids[1:, None]).squeeze(1))
    return torch.cat(found)


def padded() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same texts as rows, the places before their tokens, and these."""
    rows = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, ids in zip(rows, texts(), strict=True):
        row[: len(ids)] = ids
    before = torch.cat([row * max(LENGTHS) + torch.arange(length - 1) for row, length in enumerate(LENGTHS)])
    return rows, before, rows.flatten()[before + 1]


def gradients(network: nn.Module, values: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}
    wanted = (values * torch.linspace(-1, 1, len(values))).sum()
    found = torch.autograd.grad(wanted, list(weights.values()), allow_unused=True)
    return {name: torch.zeros(()) if g is None else g for name, g in zip(weights, found, strict=True)}


def check_policy(network: Any) -> None:
    """Compare log-probabilities in evaluation and in training mode, and gradients with recomputed activations."""
    network.config.architectures = [type(network).__name__]
    shapes = {name: tuple(weight.shape) for name, weight in network.named_parameters()}
    check_coherence("tiny", network.config, shapes)
    measure_transform(network)
    expected = alone(network)
    wanted = gradients(network, expected)
    policy = PolicyNetwork(network)
    check_network(policy, policy, ModelConfig(path="tiny", dtype="float32"), False, True, CPU)
    rows, before, targets = padded()
    for training in (False, True, True):
        found = policy.train(training)(rows, None, before, targets)["logprobs"]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    if network.supports_gradient_checkpointing:
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.train()
    found = policy(rows, None, before, targets)["logprobs"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(network, found), wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", COMMON)
def test_log_probabilities_and_gradients_are_those_of_transformers(kind: str) -> None:
    check_policy(tiny_network(kind, SHARE))


@pytest.mark.slow
@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_are_right_or_refused(kind: str) -> None:
    try:
        with torch.device("meta"):
            parameters = sum(weight.numel() for weight in tiny_network(kind, SHARE).parameters())
    except Exception as error:
        pytest.skip(f"no tiny configuration: {error}")
    if parameters > MOST_PARAMETERS:
        pytest.skip(f"{parameters:,} parameters")
    if kind not in REFUSED:
        check_policy(tiny_network(kind, SHARE))
        return
    with pytest.raises((UnknownTransform, BadInput)) as refusal:
        check_policy(tiny_network(kind, SHARE))
    assert REFUSED[kind] in str(refusal.value)


SCALARS = ["falcon", "gptj", "mixtral", "opt", "qwen3_moe", "bloom", *COMMON_TYPES]


@pytest.mark.parametrize("kind", SCALARS)
def test_scores_are_those_of_transformers(kind: str) -> None:
    """Also of architectures whose logits are scaled or capped, which their scores are not."""
    network = tiny_network(kind, SHARE, AutoModelForSequenceClassification, num_labels=1)
    expected = torch.cat([network(input_ids=ids[None]).logits.flatten() for ids in texts()])
    scalar = ScalarNetwork(network)
    last = torch.tensor([row * max(LENGTHS) + length - 1 for row, length in enumerate(LENGTHS)])
    for training in (False, True, True):
        torch.testing.assert_close(scalar.train(training)(padded()[0], None, last), expected, atol=1e-5, rtol=1e-5)
    check_network(scalar, scalar, ModelConfig(path="tiny", dtype="float32"), False, True, CPU)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gemma4", LogitTransform(cap=3.0)),
        ("gemma2", LogitTransform(cap=3.0)),
        ("nanochat", LogitTransform(cap=15.0)),
        ("granite", LogitTransform(scale=1 / 8)),
        ("cohere2", LogitTransform(scale=1 / 4)),
        ("minicpm3", LogitTransform(scale=8.0)),
        ("qwen2", LogitTransform()),
    ],
)
def test_what_becomes_of_logits_is_measured_without_weights(kind: str, expected: LogitTransform) -> None:
    with torch.device("meta"):
        network = tiny_network(kind)
    found = measure_transform(network)
    assert found.scale == pytest.approx(expected.scale)
    assert found.cap == pytest.approx(expected.cap)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits.log_softmax(-1), "neither a scale nor a cap"),
        (lambda logits: logits + 1, "neither a scale nor a cap"),
        (lambda logits: logits[:, :1], "are not those of its output layer"),
    ],
)
def test_other_transforms_are_refused(change: Callable[[torch.Tensor], torch.Tensor], reason: str) -> None:
    network = tiny_network("qwen2")
    forward = network.forward

    def changed(**inputs: Any) -> Any:
        output = forward(**inputs)
        output.logits = change(output.logits)
        return output

    network.forward = changed
    with pytest.raises(UnknownTransform, match=reason):
        PolicyNetwork(network)


def test_what_has_no_classifier_is_neither_reward_model_nor_critic(tmp_path: Path) -> None:
    """The reason, before anything starts, and architectures that can be."""
    tiny_network("granite").save_pretrained(tmp_path)
    with pytest.raises(
        BadInput, match="no sequence classifier of architecture granite; begin from another one"
    ) as refusal:
        scalar_config(ModelConfig(path=str(tmp_path)))
    assert "granite," not in str(refusal.value)


def probe(network: Any, packed: bool = False) -> None:
    policy = PolicyNetwork(network)
    check_network(policy, policy, ModelConfig(path="model", dtype="float32"), packed, True, CPU)


def test_noise_that_hangs_on_no_mode_is_found() -> None:
    network = tiny_network("qwen2")
    layer = network.model.layers[0].self_attn.o_proj
    layer.register_forward_hook(lambda module, inputs, output: nn.functional.dropout(output, 0.1, training=True))
    with pytest.raises(BadInput, match=r"^model: architecture qwen2 is not supported: read padded"):
        probe(network)


def test_what_changes_in_training_mode_is_found() -> None:
    network = tiny_network("qwen2")
    policy = PolicyNetwork(network)
    layer = network.model.layers[0].self_attn.o_proj
    # The mode of a module that `set_mode` does not know.
    layer.register_forward_hook(lambda module, inputs, output: output * (1.1 if policy.training else 1.0))
    with pytest.raises(BadInput, match="it answers otherwise while it trains"):
        check_network(policy, policy, ModelConfig(path="model", dtype="float32"), False, True, CPU)
    check_network(policy, policy, ModelConfig(path="model", dtype="float32"), False, False, CPU)


@pytest.mark.parametrize(("kind", "right"), [("llama", True), ("gpt2", True), ("bloom", False), ("opt", False)])
def test_packing_is_for_networks_that_count_positions_anew(kind: str, right: bool) -> None:
    """Here with sdpa, which takes rows apart by their positions as flash attention does."""
    if right:
        probe(tiny_network(kind), packed=True)
        return
    with pytest.raises(
        BadInput, match=r"packed into one row, it answers otherwise than alone .* set model.attention to"
    ):
        probe(tiny_network(kind), packed=True)


def test_the_probe_leaves_random_numbers_alone() -> None:
    policy = PolicyNetwork(tiny_network("qwen2"))
    before = torch.get_rng_state()
    check_network(policy, policy, ModelConfig(path="model", dtype="float32"), False, True, CPU)
    assert torch.equal(before, torch.get_rng_state())


def test_rounding_of_bfloat16_is_let_pass() -> None:
    network = tiny_network("qwen2").bfloat16()
    with torch.no_grad():
        network.lm_head.weight.mul_(20)
    policy = PolicyNetwork(network)
    check_network(policy, policy, ModelConfig(path="model", dtype="bfloat16"), False, True, CPU)


LONGEST = 16


@pytest.mark.parametrize(
    ("kind", "limited"),
    [(kind, True) for kind in ("biogpt", "codegen", "gpt2", "gpt_bigcode", "gpt_neo", "gptj", "opt")]
    + [(kind, False) for kind in ("bloom", "gemma4_text", "gpt_neox", "llama", "xglm")],
)
def test_texts_that_a_network_cannot_read_are_known_from_its_outline(kind: str, limited: bool) -> None:
    with torch.device("meta"):
        outline = tiny_network(kind, max_position_embeddings=LONGEST)
    assert longest_text(outline) == (LONGEST if limited else None)
    network = tiny_network(kind, max_position_embeddings=LONGEST)
    ids = torch.full((1, LONGEST + 1), 7)
    network(input_ids=ids[:, :-1], use_cache=False)
    with pytest.raises((IndexError, RuntimeError)) if limited else nullcontext():
        network(input_ids=ids, use_cache=False)

"""The network of a trained role: loaded, with its adapter if it has one, and what computes with it."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.models.heads import PolicyNetwork, ScalarNetwork
from rlhf_ray.models.loading import load_policy, load_scalar, unsupported
from rlhf_ray.models.logit_transform import UnknownTransform
from rlhf_ray.models.lora import add_adapter
from rlhf_ray.models.probe import Reading, Unfaithful, check_readings, probe_texts, scores_alone
from rlhf_ray.models.score_statistics import ScoreStatistics
from rlhf_ray.training.microbatch import Microbatch, as_tensor, build_microbatch
from rlhf_ray.training.ragged import lay_out_ragged

Kind = Literal["policy", "critic", "reward"]
PADDED, PACKED, RAGGED = "padded", "packed into one row", "end to end, with attention within rows"
USE_SDPA = "; set model.attention to sdpa"
"""Which never packs."""


def load_network(
    kind: Kind, model: ModelConfig, lora: LoraConfig | None, seed: int, units: ScoreStatistics | None = None
) -> tuple[Any, nn.Module]:
    """Return the Hugging Face network of a role, and the module around it that answers with what the role computes.

    `units` are those of the rewards that a critic foretells, see `load_scalar`.

    Raises:
        BadInput: the model cannot be loaded, has no layers as the adapter asks for, or logits of an unknown kind.
    """
    in_4bit = lora is not None and lora.load_in_4bit
    if kind == "policy":
        network = load_policy(model, in_4bit)
    else:
        network = load_scalar(model, seed, kind == "critic", in_4bit, units)
    if lora is not None:
        add_adapter(network, lora, seed)
    if kind != "policy":
        return network, ScalarNetwork(network)
    try:
        return network, PolicyNetwork(network)
    except UnknownTransform as error:
        raise unsupported(model.path, network.config, str(error)) from error


def is_packed(model: ModelConfig, module: nn.Module) -> bool:
    """Tell whether sequences lie one behind the other instead of padded; an encoder that pools takes padded ones."""
    return model.attention == "flash_attention_2" and not (isinstance(module, ScalarNetwork) and module.pools)


def check_network(
    module: Any, wrapped: Any, model: ModelConfig, packed: bool, trainable: bool, device: torch.device
) -> None:
    """Check that a network gives a few tokens, laid out as batches will be, the numbers that Transformers gives them.

    A handful of passes over eleven tokens, which need no memory to speak of; all ranks together, where weights are
    sharded. Windows of attention and stretched positions lie beyond so few tokens.

    Args:
        module: what is called: DeepSpeed's engine, or the wrapped network itself.
        wrapped: a `PolicyNetwork` or `ScalarNetwork`.
        model: what was loaded.
        packed: whether batches are packed.
        trainable: whether it is trained, and must compute the same in training mode.
        device: of the inputs.

    Raises:
        BadInput: it does not; says in which layout or mode.
    """
    prompt, answers = probe_texts(wrapped.network.config)
    batch = TokenBatch.from_sequences([prompt] * len(answers), answers)
    rows = np.arange(batch.rows)
    ways = {PACKED if packed else PADDED: build_microbatch(batch, rows, packed, device)}
    if wrapped.takes_ragged_rows:
        ways[RAGGED] = lay_out_ragged(batch, rows, device)
    try:
        # Where something is random, the run's own random numbers are not used up by it.
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            _compare(module, wrapped, batch, ways, model.dtype, trainable)
    except Unfaithful as error:
        hint = USE_SDPA if PACKED in str(error) else ""
        raise unsupported(model.path, wrapped.network.config, f"{error}{hint}") from error


def _compare(
    module: Any, wrapped: Any, batch: TokenBatch, ways: Mapping[str, Microbatch], dtype: str, trainable: bool
) -> None:
    scalar = isinstance(wrapped, ScalarNetwork)
    module.eval()
    if scalar:
        alone, largest = scores_alone(module, _texts(batch, _device(ways)), wrapped.pools)
    else:
        alone, largest = _logprobs_alone(module, batch, ways)
    readings = []
    for layout, laid in ways.items():
        module.eval()
        read = _answers(module, laid, scalar)
        module.train(trainable)
        again = [_answers(module, laid, scalar) for _ in range(2 if trainable else 0)]
        readings.append(Reading(layout, read, again))
    check_readings(alone, readings, largest, dtype)


def _answers(module: Any, laid: Microbatch, scalar: bool) -> Tensor:
    if scalar:
        found: Tensor = module(laid.input_ids, laid.position_ids, laid.last, laid.ragged)
        return found
    inputs = (laid.input_ids, laid.position_ids, laid.before, laid.targets)
    logprobs: Tensor = module(*inputs, ragged=laid.ragged)["logprobs"]
    return logprobs


def _texts(batch: TokenBatch, device: torch.device) -> list[Tensor]:
    return [as_tensor(batch.ids[batch.offsets[row] : batch.offsets[row + 1]], device) for row in range(batch.rows)]


def _logprobs_alone(module: Any, batch: TokenBatch, ways: Mapping[str, Microbatch]) -> tuple[Tensor, float]:
    """Return the answers' log-probabilities by the network's own logits of each text, and the largest logit."""
    found, largest = [], 0.0
    for ids, prompt in zip(_texts(batch, _device(ways)), batch.prompt_lengths.tolist(), strict=True):
        logits = module(ids[None])["logits"][0, prompt - 1 : -1].float()
        found.append(logits.log_softmax(-1).gather(1, ids[prompt:, None]).squeeze(1))
        largest = max(largest, float(logits.abs().max()))
    return torch.cat(found), largest


def _device(ways: Mapping[str, Microbatch]) -> torch.device:
    return next(iter(ways.values())).input_ids.device


def network_outputs(
    kind: Kind, module: Any, microbatch: Microbatch, need_entropy: bool, temperature: float
) -> dict[str, Tensor]:
    """Compute what a network gives for a micro-batch: a policy log-probabilities, and entropies where they are needed;
    a critic values before each response token; a reward model the score of each row.

    Args:
        kind: of the network.
        module: the network, or the engine that trains it.
        microbatch: tokens and positions.
        need_entropy: whether a policy gives entropies too.
        temperature: by which a policy's logits are divided.
    """
    if kind == "policy":
        outputs: dict[str, Tensor] = module(
            microbatch.input_ids,
            microbatch.position_ids,
            microbatch.before,
            microbatch.targets,
            microbatch.without_context,
            temperature,
            need_entropy,
            microbatch.ragged,
        )
        return outputs
    name, positions = ("values", microbatch.before) if kind == "critic" else ("scores", microbatch.last)
    return {name: module(microbatch.input_ids, microbatch.position_ids, positions, microbatch.ragged)}

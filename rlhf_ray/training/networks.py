"""The network of a trained role: loaded, with its adapter if it has one, and what computes with it."""

from typing import Any, Literal

from torch import nn

from rlhf_ray.config.lora import LoraConfig
from rlhf_ray.config.model import ModelConfig
from rlhf_ray.models.heads import PolicyNetwork, ScalarNetwork
from rlhf_ray.models.loading import load_policy, load_scalar, unsupported
from rlhf_ray.models.logit_transform import UnknownTransform
from rlhf_ray.models.lora import add_adapter
from rlhf_ray.models.score_statistics import ScoreStatistics

Kind = Literal["policy", "critic", "reward"]


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
    """Whether sequences lie one behind the other instead of being padded; an encoder that pools takes padded ones."""
    return model.attention == "flash_attention_2" and not (isinstance(module, ScalarNetwork) and module.pools)

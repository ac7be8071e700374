"""Which weights the layers of a vLLM CPU worker compute with, read from what they compute.

On CPU a linear layer computes with a packed copy of its weight, and most drop the weight itself. A product with a row
that is 1 in one place and else 0 gives a column of the copy, exactly; and NaN, which no sum takes for a number of the
trainer's, where a row of the copy holds one anywhere.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rlhf_ray.transfer.fingerprint import bit_sum, column_sum, settled, summed_columns

PLAIN_METHODS = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
"""How a layer computes that has a weight of its own and is not quantized."""


def stored_columns(model: nn.Module, dtype: torch.dtype) -> dict[str, int]:
    """Return the sum of each parameter by name: of columns that its layer computes with, where the weight is gone."""
    found = {name: column_sum(parameter, dtype) for name, parameter in model.named_parameters() if parameter.numel()}
    for name, module in model.named_modules():
        if _is_plain(module) and f"{name}.weight" not in found and not module._parameters["weight"].numel():
            found[f"{name}.weight"] = bit_sum(settled(_computed_columns(module)), dtype)
    return found


def stale_layers(model: nn.Module) -> list[str]:
    """Return names of layers that compute with something else than the weight that they have.

    An output layer that shares its embedding's weight has a packed copy of its own.
    """
    return [name for name, module in model.named_modules() if _is_plain(module) and _is_stale(module)]


def _is_plain(module: nn.Module) -> bool:
    has_weight = module._parameters.get("weight") is not None
    return has_weight and type(getattr(module, "quant_method", None)) in PLAIN_METHODS


def _is_stale(module: Any) -> bool:
    weight = module.weight.detach()
    if not weight.numel():
        return False
    return not torch.equal(settled(weight[:, summed_columns(weight.shape[1])]), settled(_computed_columns(module)))


def _computed_columns(module: Any) -> Float[Tensor, "rows columns"]:
    shape, dtype = get_layerwise_info(module).restore_metadata[0]["weight"].shape, module.weight.dtype
    columns = summed_columns(shape[1])
    rows = torch.zeros(len(columns), shape[1], dtype=dtype)
    rows[range(len(columns)), columns] = 1
    return module.quant_method.apply(module, rows).T[: shape[0]]

"""Low-rank adapters in a network: put in by PEFT, switched off, merged on the way out.

Adapters live inside the Hugging Face network, whose own layers stay as `base_layer` within PEFT's: so it is called,
sharded and gathered as any other network. Only names change on the way out, to those of plain PEFT (an adapter), or to
those of the network without an adapter (merged weights).
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.lora import ALL_LINEAR, LoraConfig

ADAPTER = "default"
"""PEFT's name of the only adapter."""
HEADS = ("score", "classifier", "pre_classifier", "pooler", "head")
"""Names of the parts of scalar heads, in any architecture."""
SAVED_PREFIX = "base_model.model."
"""Before each name in an adapter's files."""


def add_adapter(network: Any, lora: LoraConfig, seed: int) -> None:
    """Put an adapter into a network and freeze all else but a scalar head; at first it changes no output.

    Args:
        network: a Hugging Face causal language model or sequence classifier.
        lora: rank, scale and layers.
        seed: draws the adapter's first factors, the same on all ranks.

    Raises:
        BadInput: no layer has one of the names.
    """
    from peft import inject_adapter_in_model

    heads = head_names(network)
    settings = adapter_settings(network, lora)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, network, ADAPTER)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.partition(".")[0] in heads)


def adapter_settings(network: Any, lora: LoraConfig) -> Any:
    """Make PEFT's configuration of the adapter, without what its files say besides.

    Raises:
        BadInput: no layer has one of the names.
    """
    import peft

    targets = target_names(network, lora)
    heads = head_names(network)
    within_heads = {name.rpartition(".")[2] for name, _ in network.named_modules() if name.partition(".")[0] in heads}
    return peft.LoraConfig(
        r=lora.r,
        lora_alpha=int(lora.lora_alpha) if float(lora.lora_alpha).is_integer() else lora.lora_alpha,  # type: ignore[arg-type]
        lora_dropout=lora.lora_dropout,
        target_modules=targets,
        # A head may have layers of the same names as the blocks.
        exclude_modules=rf"({'|'.join(sorted(heads))})(\..*)?" if within_heads.intersection(targets) else None,
        use_rslora=lora.use_rslora,
        bias="none",
    )


def target_names(network: Any, lora: LoraConfig) -> list[str]:
    """Name the layers that get an adapter, as PEFT matches them: the ends of their full names.

    Raises:
        BadInput: no linear layer of the network's blocks has one of the names, or it has no linear layers.
    """
    base = [name for name, module in network.base_model.named_modules() if isinstance(module, nn.Linear)]
    present = sorted({name.rpartition(".")[2] for name in base})
    if not present:
        raise BadInput(f"lora: architecture {network.config.model_type} is not supported: it has no linear layers")
    if lora.target_modules == [ALL_LINEAR]:
        return present
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in base):
            ends = (network.get_input_embeddings(), network.get_output_embeddings())
            if any(name.rpartition(".")[2] == target and module in ends for name, module in network.named_modules()):
                raise BadInput(
                    f"lora.target_modules: {target!r} is an embedding or the output layer, and adapters are on layers "
                    f"of the blocks alone: {', '.join(present)}"
                )
            raise BadInput(
                f"lora.target_modules: no linear layer of {network.config.model_type} is named {target!r}; "
                f"it has {', '.join(present)}"
            )
    return sorted(lora.target_modules)


def head_names(network: Any) -> frozenset[str]:
    """Name the children of a sequence classifier beside its backbone; nothing for a language model."""
    if network.get_output_embeddings() is not None:
        return frozenset()
    return frozenset(name for name, _ in network.named_children()) - {network.base_model_prefix}


def has_adapter(network: nn.Module) -> bool:
    """Tell whether an adapter was put in."""
    return any(name.endswith(f".lora_A.{ADAPTER}") for name, _ in network.named_modules())


@contextmanager
def adapter_off(network: nn.Module) -> Iterator[None]:
    """Let the network compute, within the block, as it did before it got its adapter."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    # Not `enable_adapters`, which would also switch gradients on and off.
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def saved_name(parameter: str) -> str:
    """Return a trained parameter's name in an adapter's files."""
    return SAVED_PREFIX + parameter.replace(f".{ADAPTER}.", ".")


def files_settings(network: Any, base: str) -> Any:
    """Make PEFT's configuration as an adapter's directory holds it: with its model, its head and its task.

    `base` is the directory or hub name of the model that it was put in.
    """
    heads = sorted(head_names(network))
    settings = network.peft_config[ADAPTER]
    described = type(settings)(**{**settings.to_dict(), "inference_mode": True})
    described.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    described.task_type = "SEQ_CLS" if heads else "CAUSAL_LM"
    described.modules_to_save = heads or None
    return described


@dataclass(frozen=True)
class LowRank:
    """An adapter's update of one weight: scale x b @ a."""

    a: nn.Parameter
    """r x in."""
    b: nn.Parameter
    """out x r."""
    scale: float


@dataclass(frozen=True)
class Composed:
    """One weight as a network without an adapter would hold it."""

    weight: nn.Parameter
    update: LowRank | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All that its value depends on."""
        return [self.weight] if self.update is None else [self.weight, self.update.a, self.update.b]

    def value(self, dtype: torch.dtype) -> Float[Tensor, "..."]:
        """Return the weight, merged in float32 where it has an update; its parameters must be whole."""
        weight = self.weight.detach()
        if hasattr(self.weight, "quant_state"):
            weight = _dequantized(self.weight)
        if self.update is not None:
            update = self.update.b.detach().float() @ self.update.a.detach().float()
            weight = weight.float() + self.update.scale * update
        return weight.to(dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the whole weight, wherever its elements are."""
        weight: Any = self.weight
        if hasattr(weight, "quant_state"):
            return tuple(weight.quant_state.shape)
        return tuple(weight.ds_shape if hasattr(weight, "ds_id") else weight.shape)


def composed_weights(network: nn.Module) -> dict[str, Composed]:
    """Return all weights by their names in a network without an adapter; tied ones once."""
    parameters = dict(network.named_parameters())
    found: dict[str, Composed] = {}
    for name, parameter in parameters.items():
        layer, inner, last = name.rpartition(".base_layer.")
        if f".lora_A.{ADAPTER}." in name or f".lora_B.{ADAPTER}." in name:
            continue
        if not inner or last != "weight":
            found[name.replace(".base_layer.", ".")] = Composed(parameter)
            continue
        scale = float(network.get_submodule(layer).scaling[ADAPTER])  # type: ignore[index]
        a, b = (parameters[f"{layer}.lora_{factor}.{ADAPTER}.weight"] for factor in "AB")
        found[f"{layer}.weight"] = Composed(parameter, LowRank(a, b, scale))
    return found


def quantization_settings(dtype: torch.dtype, scalar: bool) -> Any:
    """Return how Transformers loads weights in 4 bits: NF4 with double quantization, as in the QLoRA paper.

    The output layer stays as it is, by Transformers' own choice; of a `scalar` network the head does, which is trained.

    Raises:
        BadInput: bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    check_quantization()
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(HEADS) if scalar else None,
    )


def keep_layout(network: nn.Module) -> None:
    """Keep bitsandbytes from packing weights anew at the first inference on a CPU that has bfloat16 instructions.

    Its fast inference reads that layout, training and dequantization do not.
    """
    layers: Iterator[Any] = network.modules()
    for module in layers:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def check_quantization() -> None:
    """Look for bitsandbytes.

    Raises:
        BadInput: it is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("lora.load_in_4bit: needs bitsandbytes, which is not installed; pip install bitsandbytes")


def _dequantized(weight: Any) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)

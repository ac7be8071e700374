"""New weights for a model in a vLLM CPU worker, packed layer by layer as they come.

On CPU a linear layer computes with a packed copy of its weight and drops the weight itself, where the processor has a
kernel for its type; elsewhere, as bfloat16 without AVX-512, it keeps the living weight and computes with that. vLLM's
own layerwise reload keeps the tensors of a layer until all came, gives every layer fresh memory, loads into that and
packs it. Here tensors are loaded as they come, into the living parameter where there is one and else into one block of
memory that all layers take turns with: the first touch of fresh memory takes longer than the copy itself.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.attention import Attention, is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.sanitize import restore_layer_refs
from vllm.model_executor.model_loader.weight_utils import default_weight_loader

from rlhf_ray.transfer.cpu_weights import PLAIN_METHODS
from rlhf_ray.transfer.errors import TransferError
from rlhf_ray.transfer.memory import KeptMemory

_COUNTED = "counted_weight_loader"
_WRAPPERS = (_COUNTED, "online_process_loader")
"""Names of loaders that a reload put around a layer's own one: ours, and vLLM's."""


class CpuReload:
    """Reload of one model. Between `start` and `finish`, `model.load_weights` takes tensors in any order and pieces.

    A reload that breaks off leaves the model with old weights here and new ones there; the next `start` begins anew.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._memory = KeptMemory()
        self._layers: list[_Layer] = []

    @staticmethod
    def serves(model: nn.Module) -> bool:
        """Tell whether this reload knows the kinds of all layers: unquantized, with weights of their own."""
        return all(
            type(getattr(layer, "quant_method", None)) in (*PLAIN_METHODS, type(None))
            and (type(layer) is Attention or not is_deferred_attention_layer(layer))
            for layer in model.modules()
        )

    def start(self) -> None:
        """Make every layer ready to be loaded."""
        seen: dict[int, nn.Parameter] = {}  # keeps them alive, so that no other gets the number of one that is replaced
        for layer in self._layers:
            layer.release()
        self._layers = []
        for module in self._model.modules():
            weight = module._parameters.get("weight")
            if weight is None or id(weight) in seen or type(getattr(module, "quant_method", None)) not in PLAIN_METHODS:
                continue
            seen[id(weight)] = weight  # a tied output layer has its embedding's
            self._layers.append(_Layer(module, self._memory))

    def finish(self) -> None:
        """Pack what is not packed yet.

        Raises:
            TransferError: a layer's weight, or a part of it, did not come.
        """
        for layer in self._layers:
            layer.finish()
            layer.release()
        self._layers = []


class _Layer:
    """A layer whose weight is packed once all of it came."""

    def __init__(self, module: nn.Module, memory: KeptMemory) -> None:
        self._loaded = 0  # elements that came
        self._parts: set[Any] = set()  # what the loader was told of each: which rows of a fused weight, as a rule
        self._module = module
        self._memory = memory
        self._staged: Any = None
        self._packed = False
        recorded = get_layerwise_info(module).restore_metadata[0]["weight"]
        weight: Any = module._parameters["weight"]
        # One on the meta device is left from a reload that broke off.
        self._is_dropped = weight.is_meta or weight.shape != recorded.shape
        if self._is_dropped:
            weight = restore_layer_refs(_alike(recorded.data, recorded), module)
            module.register_parameter("weight", weight)
        self._weight = weight
        self._loader = _unwrapped(getattr(weight, "weight_loader", default_weight_loader))
        weight.weight_loader = self._counted(self._loader)

    def _counted(self, loader: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(loader)
        def counted_loader(param: Tensor, loaded_weight: Tensor, *args: Any, **options: Any) -> Any:
            target = self._target()
            part = args, tuple(sorted(options.items()))
            with _Filled(target) as filled:
                result = loader(target, loaded_weight, *args, **options)
            self._loaded += filled.elements
            if part in self._parts or self._loaded > target.numel():
                raise self._came_twice()
            self._parts.add(part)
            if self._loaded == target.numel():
                self._pack()
            return result

        counted_loader.__name__ = _COUNTED
        return counted_loader

    def _target(self) -> Tensor:
        """Find where the weight is loaded to.

        Raises:
            TransferError: all of it is here already.
        """
        if self._packed:
            raise self._came_twice()
        if not self._is_dropped:
            return self._weight
        if self._staged is None:
            shape, dtype = self._weight.shape, self._weight.dtype
            block = self._memory.take(shape.numel() * dtype.itemsize)
            self._staged = _alike(block.view(dtype).view(shape), self._weight)
            self._staged.weight_loader = self._loader
        return self._staged

    def _came_twice(self) -> TransferError:
        shape = tuple(self._weight.shape)
        return TransferError(
            f"weight transfer: a weight of shape {shape}, or a part of it, came twice within one update"
        )

    def finish(self) -> None:
        """Pack an embedding, which may have more rows than its vocabulary: its loader takes the vocabulary whole.

        Raises:
            TransferError: nothing came, or of another layer not all.
        """
        if self._packed:
            return
        shape, size = tuple(self._weight.shape), self._weight.shape.numel()
        if not self._loaded or not isinstance(self._module.quant_method, UnquantizedEmbeddingMethod):
            raise TransferError(
                f"weight transfer: of a weight of shape {shape} only {self._loaded} of {size} elements came"
            )
        self._pack()

    def _pack(self) -> None:
        if self._staged is not None:
            self._module.register_parameter("weight", self._staged)
        method: Any = self._module.quant_method
        method.process_weights_after_loading(self._module)
        self._staged = None
        self._packed = True

    def release(self) -> None:
        """Give memory, and a living parameter's own loader, back."""
        self._staged = None
        if not self._is_dropped:
            self._weight.weight_loader = self._loader


class _Filled(TorchDispatchMode):
    """Count the elements of one tensor that `copy_` writes; a loader may copy elsewhere too, to transform what came."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._addresses = range(target.data_ptr(), target.data_ptr() + target.nbytes)
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].data_ptr() in self._addresses:
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


def _alike(data: Tensor, parameter: Tensor) -> Any:
    """Make a parameter with other data and all else that vLLM notes on it."""
    new: Any = nn.Parameter(data, requires_grad=False)
    new.__class__ = parameter.__class__
    new.__dict__ = parameter.__dict__.copy()
    return new


def _unwrapped(loader: Callable[..., Any]) -> Callable[..., Any]:
    """Return the layer's own loader, where a reload that broke off left another around it."""
    while getattr(loader, "__name__", "") in _WRAPPERS:
        loader = loader.__wrapped__  # type: ignore[attr-defined]
    return loader

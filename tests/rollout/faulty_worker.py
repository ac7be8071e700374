"""A worker of an engine whose layers can be made to compute with weights of old."""

from typing import Any

import torch

from rlhf_ray.transfer.vllm_adapter import TransferWorkerExtension


class FaultyWorker(TransferWorkerExtension):
    """The worker of our engines, and faults."""

    weight_transfer_engine: Any
    _remembered: tuple[str, torch.Tensor]

    def remember(self, layer: str) -> None:
        """Note the weight that a layer computes with."""
        module = self._layer(layer)
        identity = torch.eye(self.weight_transfer_engine.model.config.hidden_size, dtype=torch.bfloat16)
        self._remembered = layer, module.quant_method.apply(module, identity).T.contiguous()

    def put_back(self) -> None:
        """Let the layer compute with that weight again, whatever is stored."""
        layer, weight = self._remembered
        self._layer(layer).cpu_linear = lambda x, _, bias: torch.nn.functional.linear(x, weight, bias)

    def spoil(self) -> None:
        """Put a NaN into the last norm."""
        self.weight_transfer_engine.model.model.norm.weight.data[3] = float("nan")

    def _layer(self, name: str) -> Any:
        return self.weight_transfer_engine.model.get_submodule(name)

"""Networks that compute the same while they train as while they are read: no dropout, no noise of routers.

Sampling knows no dropout; with it, the ratio of new to old policy would not start at 1. Under which names architectures
keep its shares differs, but all of it hangs on the mode of a module: so modules stay in evaluation mode.
"""

from typing import Any

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def set_mode(network: nn.Module, training: bool) -> None:
    """Put a Hugging Face network into evaluation mode, but what must know that it trains.

    That is the dropout of an adapter, which a user asked for, and layers whose activations are recomputed; what these
    layers compute is in evaluation mode all the same.
    """
    network.eval()
    if not training:
        return
    for name, module in network.named_modules():
        if ".lora_dropout." in name:
            module.train()
        elif isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            # They ask for their mode when they are called, outside of `forward`.
            module.training = True
            if not isinstance(vars(module).get("forward"), _InEvaluation):
                module.forward = _InEvaluation(module)


class _InEvaluation:
    """The forward pass of a module that trains, in evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._forward = module, module.forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        before, self._module.training = self._module.training, False
        try:
            return self._forward(*args, **kwargs)
        finally:
            self._module.training = before

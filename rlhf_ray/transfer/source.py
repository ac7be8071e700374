"""The trainer's weights, whole and in the engine's type, whatever DeepSpeed has sharded."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from rlhf_ray.config.model import Dtype
from rlhf_ray.models.lora import Composed, composed_weights
from rlhf_ray.transfer.manifest import Manifest, TensorEntry


class DeepSpeedWeightSource:
    """Gathers the parameters of a module bucket by bucket; every rank must run through `buckets` together.

    Works on a plain module, on one under ZeRO 0 to 2 (each rank holds whole weights) and under ZeRO 3, where a bucket
    is gathered on all ranks at once, copied out and sharded again before anything is sent. Tied parameters appear once,
    under their first name. Names are those of `module.named_parameters()`, which Hugging Face checkpoints share; a
    low-rank adapter is merged into the copies that travel, and the module stays as it is.

    Args:
        module: the network itself, not the DeepSpeed engine around it.
        dtype: type that the tensors have on the wire: the engine's.
        bucket_bytes: largest bucket, in bytes on the wire; a larger tensor travels alone.
    """

    def __init__(self, module: nn.Module, dtype: Dtype, bucket_bytes: int) -> None:
        self._weights = composed_weights(module)
        self._dtype = getattr(torch, dtype)
        entries = [TensorEntry(name, dtype, weight.shape) for name, weight in self._weights.items()]
        self.manifest = Manifest.build(entries, bucket_bytes)

    @property
    def device(self) -> torch.device:
        """Return the device on which the gathered weights lie."""
        return next(iter(self._weights.values())).weight.device

    def buckets(self, keep: bool) -> Iterator[list[Shaped[Tensor, " items"]]]:
        """Yield each bucket's tensors, flat, in the manifest's order; nothing in them where `keep` is false.

        Collective under ZeRO 3: all ranks iterate, those that do not send with `keep=False`. Tensors that need neither
        gathering nor casting are the parameters' own memory, so use them before the next optimizer step.
        """
        for index in range(len(self.manifest.buckets)):
            yield self._bucket([self._weights[entry.name] for entry in self.manifest.bucket(index)], keep)

    @torch.no_grad()
    def _bucket(self, weights: list[Composed], keep: bool) -> list[Tensor]:
        with _gathered([parameter for weight in weights for parameter in weight.parameters]):
            if not keep:
                return []
            return [self._flat(weight) for weight in weights]

    def _flat(self, weight: Composed) -> Tensor:
        value = weight.value(self._dtype).reshape(-1)
        # What was gathered is gone when its bucket is sent.
        gathered = _is_sharded(weight.weight)
        same_memory = value.untyped_storage().data_ptr() == weight.weight.untyped_storage().data_ptr()
        return value.clone() if gathered and same_memory else value


def _is_sharded(parameter: nn.Parameter) -> bool:
    return hasattr(parameter, "ds_id")


def _gathered(parameters: list[nn.Parameter]) -> AbstractContextManager[object]:
    sharded = [p for p in parameters if _is_sharded(p)]
    if not sharded:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)

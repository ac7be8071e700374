"""The safetensors format, written as a stream and read tensor by tensor.

Format: 8 bytes little-endian header length, a JSON header, then the tensors' bytes
(https://huggingface.co/docs/safetensors). The library writes only local files, or the whole file in memory.
"""

import json
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Protocol, Self

import torch
from safetensors import SafetensorError, safe_open

from rlhf_ray.checkpoint.storage import CheckpointError

ALIGNMENT = 8
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class ByteSink(Protocol):
    """A stream that takes bytes."""

    def write(self, data: memoryview | bytes, /) -> object:
        """Take all of the data."""
        ...


def write_safetensors(sink: ByteSink, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, holding one tensor's bytes at a time.

    Raises:
        CheckpointError: a tensor's type has no name in the format.
    """
    # Widest element first, as the library does, so that every tensor starts on a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPE_NAMES:
            raise CheckpointError(f"tensor {name}: type {tensor.dtype} cannot be stored in a checkpoint")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % ALIGNMENT)
    sink.write(len(encoded).to_bytes(8, "little"))
    sink.write(encoded)
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        if flat.numel():
            sink.write(flat.view(torch.uint8).numpy().data)


class LazyTensors(Mapping[str, torch.Tensor]):
    """Tensors of a local safetensors file by name, each read from disk when it is asked for."""

    def __init__(self, path: str) -> None:
        try:
            self._file = safe_open(path, framework="pt", device="cpu")
        except SafetensorError as error:
            raise CheckpointError(f"{path}: is not a whole safetensors file: {error}") from error
        self._names = list(self._file.keys())

    def __enter__(self) -> Self:
        self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the file's header."""
        return tuple(self._file.get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

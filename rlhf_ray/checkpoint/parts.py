"""Parts of a checkpoint: the files that one rank wrote, with their size and hash."""

import hashlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from rlhf_ray.checkpoint.storage import CheckpointError, filesystem, join, local_path, reading, size, writing

if TYPE_CHECKING:
    import torch

    from rlhf_ray.checkpoint.tensors import LazyTensors

HASH_BLOCK_BYTES = 8 << 20


class Damaged(CheckpointError):
    """A part of a checkpoint is not what was written."""


@dataclass(frozen=True)
class Part:
    """One written file. `path` is relative to the folder that its writer was given."""

    path: str
    bytes: int
    sha256: str


class HashingStream(io.RawIOBase):
    """Writes through to a stream while hashing and counting, so that no file is read back to be hashed."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__()
        self._stream = stream
        self._hash = hashlib.sha256()
        self.count = 0

    def writable(self) -> bool:
        """Tell that this stream is for writing."""
        return True

    def write(self, data: "bytes | bytearray | memoryview") -> int:  # type: ignore[override]
        """Write all of the data.

        Raises:
            OSError: the stream below could not take it.
        """
        view = memoryview(data).cast("B")
        self._stream.write(view)
        self._hash.update(view)
        self.count += len(view)
        return len(view)

    def part(self, path: str) -> Part:
        """Describe what was written so far as a part of a checkpoint: path, number of bytes, SHA-256."""
        return Part(path, self.count, self._hash.hexdigest())


def hash_file(path: str) -> str:
    """Return the SHA-256 of a file in hexadecimal, read in blocks.

    Raises:
        FileNotFoundError: there is no such file.
    """
    digest = hashlib.sha256()
    with reading(path) as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def problem(directory: str, part: Part, hashes: bool = True) -> str | None:
    """Say why a part on storage is not the one that was written; None if it is."""
    path = join(directory, part.path)
    try:
        found = size(path)
        if found != part.bytes:
            return f"{path} has {found} bytes, written were {part.bytes}"
        if hashes and hash_file(path) != part.sha256:
            return f"{path} does not have the hash that was written"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read: {error}"
    return None


def write_tensors(directory: str, name: str, tensors: "Mapping[str, torch.Tensor]") -> Part:
    """Write tensors as a safetensors file, one tensor at a time, so that no second copy of the file is in memory.

    Args:
        directory: directory or URL; made if it is not there.
        name: file name, such as `rank_0.safetensors`.
        tensors: tensors by name, on any device; each is made contiguous on the CPU only while it is written.

    Raises:
        CheckpointError: the storage is full, or refuses to be written.
    """
    from rlhf_ray.checkpoint.tensors import write_safetensors

    with writing(join(directory, name)) as stream:
        hashing = HashingStream(stream)
        write_safetensors(hashing, tensors, {})
    return hashing.part(name)


@contextmanager
def open_tensors(path: str, sha256: str | None = None) -> "Iterator[LazyTensors]":
    """Open the tensors of a safetensors file by name, each read when asked for; a remote file is fetched first.

    Args:
        path: of the file, or its URL.
        sha256: what its bytes must hash to; None: whatever it holds is right.

    Raises:
        CheckpointError: the file is missing or is no safetensors file.
        Damaged: it does not have that hash.
    """
    try:
        with _local_copy(path) as local:
            if sha256 is not None and hash_file(local) != sha256:
                raise Damaged(f"{path} does not have the hash that was written")
            from rlhf_ray.checkpoint.tensors import LazyTensors

            with LazyTensors(local) as tensors:
                yield tensors
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file in the checkpoint") from error


@contextmanager
def _local_copy(path: str) -> Iterator[str]:
    """Return the path of a file on this machine; of a remote one that of a copy, which goes with the block."""
    local = local_path(path)
    if local is not None:
        yield local
        return
    fs, inner = filesystem(path)
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as copy:
        fs.get_file(inner, copy.name)
        yield copy.name

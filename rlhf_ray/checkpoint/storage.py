"""Files of a run folder on a local disk or behind any fsspec URL (s3://, gs://, memory://, ...)."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from rlhf_ray.config.errors import RlhfError


class CheckpointError(RlhfError):
    """A checkpoint could not be written or read; the message says which file and what to do."""


def join(folder: str, *names: str) -> str:
    """Return the path or URL of an entry below a folder."""
    return "/".join([folder.rstrip("/"), *names])


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system that serves a path or URL, and the path within it.

    Without `://` it is a path of this machine, whatever is in it: fsspec takes `a::b` for a chain of two protocols.
    """
    if "://" not in path:
        return fsspec.filesystem("file"), str(LocalFileSystem._strip_protocol(path))
    fs, inner = fsspec.core.url_to_fs(path)
    return fs, str(inner)


def local_path(path: str) -> str | None:
    """Return the path on this machine's disk, or None where the file system is a remote one."""
    fs, inner = filesystem(path)
    return inner if isinstance(fs, LocalFileSystem) else None


def exists(path: str) -> bool:
    """Tell whether a file or folder is there."""
    fs, inner = filesystem(path)
    # Object stores remember listings, in which what other nodes wrote since is missing.
    fs.invalidate_cache()
    return bool(fs.exists(inner))


def size(path: str) -> int:
    """Return the bytes of a file.

    Raises:
        FileNotFoundError: there is no such file.
    """
    fs, inner = filesystem(path)
    fs.invalidate_cache()
    return int(fs.info(inner)["size"])


def entries(folder: str) -> list[str]:
    """List the names directly below a folder; none if it does not exist, or cannot because a file is in its place."""
    fs, inner = filesystem(folder)
    fs.invalidate_cache()
    try:
        listed = fs.ls(inner, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.rstrip("/").rsplit("/", 1)[-1] for name in listed)


def remove(folder: str) -> None:
    """Delete a folder and all below it; nothing happens if it is not there."""
    fs, inner = filesystem(folder)
    with suppress(FileNotFoundError):
        fs.rm(inner, recursive=True)


@contextmanager
def reading(path: str) -> Iterator[IO[bytes]]:
    """Open a file for reading bytes."""
    fs, inner = filesystem(path)
    with fs.open(inner, "rb") as stream:
        yield stream


@contextmanager
def writing(path: str) -> Iterator[IO[bytes]]:
    """Open a new file for writing bytes; it appears under its name only when the block ends well.

    On a disk the bytes go to a neighbour that is flushed to the device and then renamed; an object store shows an
    object when its upload completes. If the block fails nothing is left.

    Raises:
        CheckpointError: the storage is full, or refuses to be written.
    """
    fs, inner = filesystem(path)
    try:
        if isinstance(fs, LocalFileSystem):
            with _local_file(inner) as stream:
                yield stream
        else:
            with _remote_file(fs, inner) as stream:
                yield stream
    except OSError as error:
        raise _storage_error(error, path) from error


@contextmanager
def _local_file(path: str) -> Iterator[IO[bytes]]:
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        sync_folder(folder)
    except BaseException:
        with suppress(OSError):
            os.unlink(partial)
        raise


def sync_folder(folder: str) -> None:
    """Flush a folder's entries to the device; without, a power cut may lose a rename although the bytes are safe."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync a directory and say EINVAL.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _remote_file(fs: fsspec.AbstractFileSystem, path: str) -> Iterator[IO[bytes]]:
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    # A transaction makes the object appear at its end, and ends the upload without one if the block fails.
    with fs.transaction, fs.open(path, "wb") as stream:
        yield stream


def _storage_error(error: OSError, path: str) -> CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        what = "the storage is full (or a quota or file size limit is reached)"
        return CheckpointError(f"{path}: could not be written: {what}; free space, or set another `output`")
    return CheckpointError(f"{path}: could not be written: {error}")

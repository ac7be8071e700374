import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from rlhf_ray.checkpoint import storage
from rlhf_ray.checkpoint.parts import Part, open_tensors, problem, write_tensors
from rlhf_ray.checkpoint.storage import CheckpointError, entries, exists, join
from tests.checkpoint.files import describe, write_bytes

TENSORS = {
    "weight": torch.randn(3, 5),
    "transposed": torch.randn(4, 6).t(),
    "half": torch.randn(7).to(torch.bfloat16),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "mask": torch.tensor([True, False, True]),
    "bytes": torch.arange(5, dtype=torch.uint8),
}


def test_tensors_come_back_bit_for_bit(folder: str):
    part = write_tensors(folder, "policy/rank_0.safetensors", TENSORS)
    assert describe(folder, part.path) == part, "hash and size taken while writing are those of the file"
    with open_tensors(join(folder, part.path)) as found:
        assert set(found) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name


def test_the_library_reads_what_we_write_and_we_what_it_writes(tmp_path: Path):
    write_tensors(str(tmp_path), "ours.safetensors", TENSORS)
    loaded = load_file(tmp_path / "ours.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    write_bytes(str(tmp_path), "theirs.safetensors", save({"weight": TENSORS["weight"]}))
    with open_tensors(str(tmp_path / "theirs.safetensors")) as found:
        assert torch.equal(found["weight"], TENSORS["weight"])


def test_damage_is_found(folder: str):
    part = write_bytes(folder, "part", b"0123456789")
    assert problem(folder, part) is None
    write_bytes(folder, "part", b"0123x56789")
    assert "hash" in str(problem(folder, part))
    assert problem(folder, part, hashes=False) is None
    write_bytes(folder, "part", b"012345678")
    assert "has 9 bytes, written were 10" in str(problem(folder, part))
    assert "is missing" in str(problem(folder, Part("other", 1, "")))


def test_a_cut_file_is_refused(tmp_path: Path):
    write_tensors(str(tmp_path), "part.safetensors", TENSORS)
    path = tmp_path / "part.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match="is not a whole safetensors file"), open_tensors(str(path)):
        pass
    with pytest.raises(CheckpointError, match="no such file"), open_tensors(str(tmp_path / "none")):
        pass


def test_a_type_without_a_name_is_refused(folder: str):
    with pytest.raises(CheckpointError, match=r"tensor w: type torch\.complex64"):
        write_tensors(folder, "part", {"w": torch.zeros(2, dtype=torch.complex64)})
    assert not exists(join(folder, "part"))


def break_off(path: str, data: bytes) -> None:
    with storage.writing(path) as stream:
        stream.write(data)
        raise KeyboardInterrupt


def test_a_write_that_breaks_off_leaves_nothing(folder: str):
    with pytest.raises(KeyboardInterrupt):
        break_off(join(folder, "role/part"), b"x" * 100)
    assert entries(join(folder, "role")) == []


def test_a_file_keeps_its_old_content_until_the_new_one_is_whole(folder: str):
    write_bytes(folder, "part", b"old")
    with pytest.raises(KeyboardInterrupt):
        break_off(join(folder, "part"), b"new")
    assert describe(folder, "part").bytes == 3
    with storage.reading(join(folder, "part")) as stream:
        assert stream.read() == b"old"


FULL_DISK = """
import resource, signal, sys, torch
from rlhf_ray.checkpoint.parts import write_tensors
from rlhf_ray.checkpoint.storage import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_tensors(sys.argv[1], "rank_0.safetensors", {"w": torch.zeros(1_000_000)})
except CheckpointError as error:
    print(error)
"""


def test_the_kernel_refuses_more_bytes(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True
    )
    assert "rank_0.safetensors: could not be written: the storage is full" in done.stdout
    assert "free space, or set another `output`" in done.stdout
    assert os.listdir(tmp_path) == []


def test_a_full_disk_at_the_last_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(CheckpointError, match="the storage is full"):
        write_bytes(str(tmp_path), "part", b"x")
    assert os.listdir(tmp_path) == []

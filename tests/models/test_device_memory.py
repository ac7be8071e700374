"""Memory that a model gives away comes back bit for bit, and takes no more of the host than it holds."""

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.models import device_memory
from rlhf_ray.models.device_memory import ALIGNMENT, DeviceMemory, HostCopy, tensors_on, weights_of

CPU = torch.device("cpu")


def test_views_survive_and_memory_is_gone_meanwhile() -> None:
    flat = torch.arange(12, dtype=torch.float32)
    parameter = nn.Parameter(flat[2:8].view(2, 3))
    half = torch.ones(5, dtype=torch.bfloat16)
    copy = HostCopy(pinned=False)
    copy.take([flat, parameter, half, flat[1:], torch.empty(0)])
    assert flat.untyped_storage().nbytes() == half.untyped_storage().nbytes() == 0
    copy.restore()
    assert flat.tolist() == list(range(12))
    assert half.tolist() == [1] * 5
    with torch.no_grad():
        parameter.add_(100)
    assert flat[2:8].tolist() == [102, 103, 104, 105, 106, 107]


def test_host_memory_is_as_large_as_what_waits_in_it_and_serves_each_sleep() -> None:
    """Not the next power of two, and not anew each time."""
    tensors = [torch.full((size,), float(size)) for size in (1000, 33, 4097)]
    copy = HostCopy(pinned=False)
    places = set()
    for turn in range(3):
        copy.take(tensors)
        places.add(copy._block.data_ptr())
        held = sum(4 * size for size in (1000, 33, 4097))
        assert held <= copy.nbytes < held + 3 * ALIGNMENT
        copy.restore()
        for tensor in tensors:
            assert torch.equal(tensor, torch.full_like(tensor, tensor.numel() + turn))
            tensor.add_(1)
    assert len(places) == 1
    copy.take([*tensors, torch.ones(10_000)])
    copy.restore()
    assert copy.nbytes >= 4 * (1000 + 33 + 4097 + 10_000), "as where an optimizer made its state meanwhile"


def test_what_never_changes_is_copied_once() -> None:
    weight = torch.zeros(4)
    copy = HostCopy(pinned=False, constant=True)
    copy.take([weight])
    copy.restore()
    weight.fill_(5)  # as nobody does
    copy.take([weight])
    copy.restore()
    assert weight.tolist() == [0] * 4


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """The device is the CPU, whose memory is told to be pinned."""
    pins: list[tuple[int, bool]] = []
    monkeypatch.setattr(device_memory, "_pin", lambda block, pinned: pins.append((block.numel(), pinned)))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return pins


def test_a_frozen_model_keeps_its_copy_and_a_trained_one_its_room(like_a_gpu: list[tuple[int, bool]]) -> None:
    network = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32))
    optimizer_state = torch.ones(1000)
    before = [tensor.clone() for tensor in weights_of(network)]
    tensors = [*weights_of(network), optimizer_state]
    memory = DeviceMemory(torch.device("cuda"), lambda: tensors, lambda: weights_of(network))
    for turn in range(3):
        memory.sleep()
        memory.sleep()
        assert all(tensor.untyped_storage().nbytes() == 0 for tensor in tensors)
        memory.wake()
        memory.wake()
        assert all(map(torch.equal, weights_of(network), before))
        assert optimizer_state.tolist() == [1 + turn] * 1000
        optimizer_state.add_(1)
    frozen, trained = [size for size, pinned in like_a_gpu if pinned]
    assert 0 < frozen - sum(tensor.nbytes for tensor in before) < len(before) * ALIGNMENT
    assert trained == -(-4000 // ALIGNMENT) * ALIGNMENT


def test_on_cpu_nothing_moves() -> None:
    weight = torch.ones(3)
    memory = DeviceMemory(CPU, lambda: [weight])
    memory.sleep()
    assert weight.tolist() == [1] * 3


class Quantised(nn.Parameter):
    """A kind of Parameter, as weights in 4 bits are."""


def test_finds_parameters_gradients_plain_tensors_and_kinds_of_parameters() -> None:
    network = nn.Linear(3, 2)
    network(torch.ones(1, 3)).sum().backward()
    quantised: Tensor = Quantised(torch.ones(2))
    found = {id(t) for t in tensors_on(CPU)}
    assert {id(network.weight), id(network.bias), id(network.weight.grad), id(quantised)} <= found

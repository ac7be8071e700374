import torch

from rlhf_ray.training.process import OffloadedStorages, tensors_on


def test_views_survive_and_memory_is_gone_meanwhile():
    flat = torch.arange(12, dtype=torch.float32)
    parameter = torch.nn.Parameter(flat[2:8].view(2, 3))
    half = torch.ones(5, dtype=torch.bfloat16)
    offloaded = OffloadedStorages([flat, parameter, half, flat[1:], torch.empty(0)])
    assert offloaded.nbytes == 12 * 4 + 5 * 2
    assert flat.untyped_storage().nbytes() == half.untyped_storage().nbytes() == 0
    offloaded.restore()
    assert flat.tolist() == list(range(12))
    assert half.tolist() == [1] * 5
    with torch.no_grad():
        parameter.add_(100)
    assert flat[2:8].tolist() == [102, 103, 104, 105, 106, 107]


def test_finds_parameters_gradients_and_plain_tensors():
    network = torch.nn.Linear(3, 2)
    network(torch.ones(1, 3)).sum().backward()
    found = {id(t) for t in tensors_on(torch.device("cpu"))}
    assert {id(network.weight), id(network.bias), id(network.weight.grad)} <= found

"""Weights that come in any order and in pieces, into layers that vLLM packs for CPU."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray.transfer.cpu_reload import CpuReload
from rlhf_ray.transfer.errors import TransferError

vllm_linear = pytest.importorskip("vllm.model_executor.layers.linear", reason="needs vLLM")

PADDED_ROWS, ROWS, WIDTH = 72, 65, 32


def load_rows(param: Tensor, loaded_weight: Tensor, first: int = 0) -> None:
    """A loader as vLLM's fused layers have them: one tensor fills some of the rows."""
    param.data.narrow(0, first, len(loaded_weight)).copy_(loaded_weight)


def layer(rows: int, method: Any, dtype: torch.dtype) -> nn.Module:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.zeros(rows, WIDTH, dtype=dtype), requires_grad=False))
    module.weight.weight_loader = load_rows  # type: ignore[union-attr]
    module.quant_method = method
    return module


class Model(nn.Module):
    """An embedding with padded rows, two linear layers, and a norm of its own; packed, as an engine has it."""

    def __init__(self, dtype: torch.dtype) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

        super().__init__()
        self.embedding = layer(PADDED_ROWS, UnquantizedEmbeddingMethod(), dtype)
        self.first, self.second = (layer(64, vllm_linear.UnquantizedLinearMethod(), dtype) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, dtype=dtype)
        record_metadata_for_reloading(self)
        for module in (self.embedding, self.first, self.second):
            module.quant_method.process_weights_after_loading(module)

    def load(self, name: str, weight: Tensor, first: int = 0) -> None:
        param = self.get_parameter(f"{name}.weight")
        param.weight_loader(param, weight, first)

    def linear(self, name: str, rows: Tensor) -> Tensor:
        return self.get_submodule(name).cpu_linear(rows, None, None)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def new_weights(model: Model, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sizes = {"embedding": ROWS, "first": 64, "second": 64}
    dtype = model.embedding.weight.dtype
    return {name: torch.randn(rows, WIDTH, generator=generator).to(dtype) for name, rows in sizes.items()}


def load_all(model: Model, weights: dict[str, Tensor]) -> None:
    """The linear layers piece by piece in turns, the second half of each first."""
    model.load("first", weights["first"][32:], 32)
    model.load("second", weights["second"][32:], 32)
    model.load("embedding", weights["embedding"])
    model.load("first", weights["first"][:32])
    model.load("second", weights["second"][:32])


def check(model: Model, weights: dict[str, Tensor]) -> None:
    rows = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(9)).to(weights["first"].dtype)
    for name, weight in weights.items():
        expected = (rows.double() @ weight.double().T).float()
        found = model.linear(name, rows).float()[:, : len(weight)]
        torch.testing.assert_close(found, expected, rtol=2e-2 if rows.dtype == torch.bfloat16 else 1e-5, atol=1e-4)
    assert torch.equal(model.embedding.weight[:ROWS], weights["embedding"])
    assert model.first.weight.numel() == model.second.weight.numel() == 0, "engines keep packed weights only"


def test_layers_compute_with_what_came_last(model: Model):
    assert CpuReload.serves(model)
    reload = CpuReload(model)
    embedding = model.embedding.weight
    for seed in (1, 2):
        weights = new_weights(model, seed)
        reload.start()
        load_all(model, weights)
        reload.finish()
        check(model, weights)
    assert model.embedding.weight is embedding
    assert embedding.weight_loader is load_rows


def test_an_update_after_one_that_broke_off_is_whole(model: Model):
    reload, weights = CpuReload(model), new_weights(model, 3)
    reload.start()
    model.load("first", torch.full((32, WIDTH), 7.0), 32)
    model.load("embedding", weights["embedding"] + 1)
    reload.start()
    load_all(model, weights)
    reload.finish()
    check(model, weights)


def test_a_layer_of_which_a_part_is_missing_is_refused(model: Model):
    reload, weights = CpuReload(model), new_weights(model, 4)
    reload.start()
    model.load("second", weights["second"])
    model.load("first", weights["first"][:32])
    with pytest.raises(TransferError, match=r"shape \(64, 32\) only 1024 elements came"):
        reload.finish()


def test_a_weight_that_comes_twice_is_refused(model: Model):
    reload, weights = CpuReload(model), new_weights(model, 5)
    reload.start()
    param = model.get_parameter("first.weight")  # as vLLM's models do, which list their parameters once
    param.weight_loader(param, weights["first"])
    with pytest.raises(TransferError, match=r"shape \(64, 32\) came twice"):
        param.weight_loader(param, weights["first"])


def test_layers_of_other_kinds_are_left_to_vllm(model: Model):
    class Quantized(vllm_linear.UnquantizedLinearMethod):
        pass

    model.second.quant_method = Quantized()
    assert not CpuReload.serves(model)

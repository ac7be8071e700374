"""Weights that come in any order and in pieces, into layers of both kinds that vLLM has on CPU.

Which kind a layer is depends on its type and on the processor: with a packed copy beside a weight that is dropped, or
with nothing but the living weight, as bfloat16 is without AVX-512. Each test meets both, whatever machine it runs on.
"""

from collections.abc import Callable
from typing import Any, Literal

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


def load_transformed(param: Tensor, loaded_weight: Tensor, first: int = 0) -> None:
    """A loader that copies once more on its way."""
    load_rows(param, torch.empty_like(loaded_weight).copy_(loaded_weight), first)


def layer(rows: int, method: Any, dtype: torch.dtype, loader: Callable[..., None]) -> nn.Module:
    module = nn.Module()
    module.register_parameter("weight", nn.Parameter(torch.zeros(rows, WIDTH, dtype=dtype), requires_grad=False))
    module.weight.weight_loader = loader  # type: ignore[union-attr]
    module.quant_method = method
    return module


class Model(nn.Module):
    """An embedding with padded rows, two linear layers, and a norm of its own; packed, as an engine has it."""

    def __init__(self, dtype: torch.dtype, loader: Callable[..., None] = load_rows) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
        from vllm.model_executor.model_loader.reload import record_metadata_for_reloading

        super().__init__()
        linear = vllm_linear.UnquantizedLinearMethod
        self.embedding = layer(PADDED_ROWS, UnquantizedEmbeddingMethod(), dtype, loader)
        self.first, self.second = (layer(64, linear(), dtype, loader) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH, dtype=dtype)
        record_metadata_for_reloading(self)
        for module in (self.embedding, self.first, self.second):
            module.quant_method.process_weights_after_loading(module)

    def load(self, name: str, weight: Tensor, first: int = 0) -> None:
        param = self.get_parameter(f"{name}.weight")
        param.weight_loader(param, weight, first)

    def linear(self, name: str, rows: Tensor) -> Tensor:
        module: Any = self.get_submodule(name)
        return module.quant_method.apply(module, rows)


Kind = Literal["processor", "packed", "living"]


@pytest.fixture
def dispatch(monkeypatch: pytest.MonkeyPatch) -> Callable[[Kind], None]:
    """Choose how vLLM computes the layers that are packed from now on: as on this processor, or as on one of a kind."""
    from vllm import _custom_ops as kernels
    from vllm.model_executor.layers import utils as layers

    def packed_copy(weight: Tensor, cache_size: int) -> Tensor:
        return weight.clone()

    def product(packed: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
        return rows @ packed if bias is None else rows @ packed + bias

    def choose(kind: Kind) -> None:
        if kind == "processor":
            return
        monkeypatch.setattr(layers.current_platform, "is_zen_cpu", lambda: False)
        monkeypatch.setattr(layers, "check_cpu_sgl_kernel", lambda n, k, dtype: False)
        monkeypatch.setattr(kernels, "_supports_onednn", kind == "packed")
        # Stand-ins, since oneDNN has no bfloat16 product on a processor of the other kind.
        monkeypatch.setattr(kernels, "create_onednn_mm", packed_copy)
        monkeypatch.setattr(kernels, "onednn_mm", product)

    return choose


@pytest.fixture(params=["processor", "packed", "living"])
def kind(request: pytest.FixtureRequest, dispatch: Callable[[Kind], None]) -> Kind:
    dispatch(request.param)
    return request.param


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, kind: Kind) -> Model:
    model = Model(request.param)
    if kind != "processor":
        assert (model.first.weight.numel() == 0) == (kind == "packed"), "vLLM dispatches by something else now"
    return model


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
    for name in ("first", "second"):
        kept = model.get_submodule(name).weight
        assert kept.numel() == 0 or torch.equal(kept, weights[name]), "a packed weight is dropped, a living one is new"


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


@pytest.mark.parametrize("missing", ["part of first", "first", "embedding"])
def test_a_part_that_is_missing_is_refused(model: Model, missing: str):
    reload, weights = CpuReload(model), new_weights(model, 4)
    reload.start()
    model.load("second", weights["second"])
    if missing != "embedding":
        model.load("embedding", weights["embedding"])
    if missing != "first":
        model.load("first", weights["first"][:32])
    if missing == "embedding":
        model.load("first", weights["first"][32:], 32)
    came = {"part of first": r"\(64, 32\) only 1024 of 2048", "first": r"\(64, 32\) only 0 of 2048"}
    expected = came.get(missing, r"\(72, 32\) only 0 of 2304")
    with pytest.raises(TransferError, match=expected):
        reload.finish()


@pytest.mark.parametrize("name", ["first", "embedding"])
def test_a_weight_that_comes_twice_is_refused(model: Model, name: str):
    reload, weights = CpuReload(model), new_weights(model, 5)
    reload.start()
    param = model.get_parameter(f"{name}.weight")  # as vLLM's models do, which list their parameters once
    param.weight_loader(param, weights[name])
    with pytest.raises(TransferError, match=r"shape \(\d\d, 32\), or a part of it, came twice"):
        param.weight_loader(param, weights[name])


@pytest.mark.parametrize("parts", [[(32, 64), (32, 64)], [(32, 64), (0, 64)], [(0, 64), (0, 32)]])
def test_a_part_that_comes_twice_is_refused(model: Model, parts: list[tuple[int, int]]):
    """Half the elements twice are as many as the whole: a count alone would take them for it."""
    reload, weights = CpuReload(model), new_weights(model, 6)
    reload.start()
    param = model.get_parameter("first.weight")
    (first, last), (again, end) = parts
    param.weight_loader(param, weights["first"][first:last], first)
    with pytest.raises(TransferError, match=r"shape \(64, 32\), or a part of it, came twice"):
        param.weight_loader(param, weights["first"][again:end], again)


def test_what_a_loader_copies_on_its_way_is_no_part_of_the_weight(kind: Kind):
    model = Model(torch.float32, load_transformed)
    reload, weights = CpuReload(model), new_weights(model, 7)
    reload.start()
    load_all(model, weights)
    reload.finish()
    check(model, weights)


@pytest.mark.parametrize(("before", "after"), [("packed", "living"), ("living", "packed")])
def test_layers_may_become_of_the_other_kind(dispatch: Callable[[Kind], None], before: Kind, after: Kind):
    """VLLM keeps a living weight where packing it failed, once or always: shared memory is then not this layer's."""
    dispatch(before)
    model = Model(torch.float32)
    dispatch(after)
    reload = CpuReload(model)
    for seed in (1, 2):
        weights = new_weights(model, seed)
        reload.start()
        load_all(model, weights)
        reload.finish()
        check(model, weights)


def test_layers_of_other_kinds_are_left_to_vllm(model: Model):
    class Quantized(vllm_linear.UnquantizedLinearMethod):
        pass

    model.second.quant_method = Quantized()
    assert not CpuReload.serves(model)

"""Sums over bits: what they do not depend on, and what they see."""

import pytest
import torch

from rlhf_ray.transfer.fingerprint import (
    BITS,
    COLUMNS,
    OUTSIDE,
    bit_sum,
    by_layer,
    column_sum,
    layer_of,
    modulus,
    over_workers,
    summed_columns,
)

DTYPES = [torch.float32, torch.bfloat16]


def weight(dtype: torch.dtype, rows: int = 300, width: int = 257) -> torch.Tensor:
    return (torch.randn(rows, width, generator=torch.Generator().manual_seed(0)) * 0.02).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sum_is_that_of_its_definition(dtype: torch.dtype):
    value = weight(dtype)
    bits = value.view(BITS[dtype.itemsize]).flatten().tolist()
    assert bit_sum(value, dtype) == sum(x * (x + 1) for x in bits) % 2 ** (8 * dtype.itemsize)


@pytest.mark.parametrize("dtype", DTYPES)
def test_order_fusing_dividing_and_padding_do_not_show(dtype: torch.dtype):
    value = weight(dtype)
    total = bit_sum(value, dtype)
    assert bit_sum(value.T, dtype) == bit_sum(value[torch.randperm(300)], dtype) == total
    assert bit_sum(torch.cat([value, torch.zeros(20, 257, dtype=dtype)]), dtype) == total
    parts = {f"layers.3.{n}": bit_sum(part, dtype) for n, part in enumerate(value.split(70))}
    assert by_layer(parts, dtype) == {"layer 3": total}
    halves = [{"layers.3.w": bit_sum(half, dtype), "layers.3.norm": 5} for half in value.split(150, dim=1)]
    assert by_layer(over_workers(halves), dtype) == {"layer 3": (total + 5) % 2 ** (8 * dtype.itemsize)}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_of_an_element_counts(dtype: torch.dtype):
    value = weight(dtype)
    total = bit_sum(value, dtype)
    for bit in range(8 * dtype.itemsize):
        changed = value.clone()
        changed.view(BITS[dtype.itemsize])[7, 11] ^= -(2**bit) if bit == 8 * dtype.itemsize - 1 else 2**bit
        assert bit_sum(changed, dtype) != total, bit


def test_steps_of_one_unit_up_and_down_do_not_cancel():
    value = weight(torch.bfloat16)
    changed = value.clone()
    bits = changed.view(torch.int16)
    bits[0, 0] += 1
    bits[0, 1] -= 1
    assert bit_sum(changed, torch.bfloat16) != bit_sum(value, torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_are_summed_as_a_matrix_of_their_own(dtype: torch.dtype):
    value = weight(dtype)
    total = column_sum(value, dtype)
    columns = summed_columns(257)
    assert len(columns) == COLUMNS
    assert total == bit_sum(value[:, columns], dtype)
    assert sum(column_sum(part, dtype) for part in value.split(70)) % modulus(dtype) == total
    changed = value.clone()
    changed[9, columns[1]] += 1
    assert column_sum(changed, dtype) != total
    assert column_sum(value[0], dtype) == bit_sum(value[0], dtype)
    assert summed_columns(1) == [0]


def test_zeros_of_both_signs_and_the_smallest_numbers_are_one():
    assert column_sum(torch.tensor([[-0.0], [1e-40], [-1e-40]]), torch.float32) == 0


def test_a_wider_copy_of_a_weight_is_the_same_weight():
    value = weight(torch.bfloat16)
    assert bit_sum(value.float(), torch.bfloat16) == bit_sum(value, torch.bfloat16)


def test_names_of_trainer_and_engine_belong_to_one_layer():
    names = ("model.layers.12.self_attn.q_proj.weight", "language_model.model.layers.12.self_attn.qkv_proj.weight")
    assert {layer_of(name) for name in names} == {"layer 12"}
    assert layer_of("model.embed_tokens.weight") == OUTSIDE

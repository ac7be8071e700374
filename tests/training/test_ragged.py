"""Which way a micro-batch is laid out, and that trainers compute the same in each."""

import numpy as np
import torch

from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.training.ragged import lay_out_passes

CPU = torch.device("cpu")


def make_batch(prompts: list[int], responses: list[int], shared: bool) -> TokenBatch:
    """Prompts of given lengths, each of two rows if shared."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(5, 99, size).astype(np.int32) for size in prompts]
    own = [ids[row // 2] if shared else ids[row] for row in range(len(responses))]
    return TokenBatch.from_sequences(own, [draw.integers(5, 99, size).astype(np.int32) for size in responses])


def is_ragged(batch: TokenBatch, takes: bool = True, packed: bool = False) -> bool:
    parts = lay_out_passes(batch, np.arange(batch.rows), packed, takes, True, CPU)
    return parts[0].ragged is not None


def test_rows_are_ragged_where_that_costs_less() -> None:
    shared = make_batch([44] * 4, [130] * 8, shared=True)
    assert is_ragged(shared)
    assert not is_ragged(shared, takes=False)
    assert not is_ragged(shared, packed=True)
    assert not is_ragged(make_batch([44] * 8, [130] * 8, shared=False)), "nothing is shared, and nothing padded"
    assert not is_ragged(make_batch([4] * 4, [130] * 8, shared=True)), "copies would cost more than the prompts"
    assert is_ragged(make_batch([4] * 8, [20, 40, 80, 120, 160, 200, 300, 500], shared=False)), "of many lengths"


def test_no_rows_give_a_stand_in() -> None:
    batch = make_batch([4], [3], shared=False)
    [stand_in] = lay_out_passes(batch, np.zeros(0, np.int64), False, True, True, CPU)
    assert stand_in.stand_in
    assert stand_in.ragged is None

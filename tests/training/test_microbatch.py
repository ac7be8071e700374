import numpy as np
import torch
from training_cases import make_batch

from rlhf_ray.config.model import ModelConfig
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.models.heads import PolicyNetwork
from rlhf_ray.models.loading import load_policy
from rlhf_ray.training import microbatch
from rlhf_ray.training.microbatch import build_microbatch, in_order, join_columns, join_outputs, select_columns
from rlhf_ray.training.ragged import lay_out_passes

CPU = torch.device("cpu")


def test_every_response_token_is_predicted_from_the_place_before_it():
    batch = make_batch()
    rows = np.array([4, 0, 2])
    for packed in (False, True):
        laid = build_microbatch(batch, rows, packed, CPU)
        flat = laid.input_ids.reshape(-1)
        expected = np.concatenate(
            [batch.ids[batch.offsets[r] + batch.prompt_lengths[r] : batch.offsets[r + 1]] for r in rows]
        )
        assert laid.targets.tolist() == expected.tolist()
        assert flat[laid.before + 1].tolist() == expected.tolist()
        assert flat[laid.last].tolist() == [batch.ids[batch.offsets[r + 1] - 1] for r in rows]
        assert laid.rows.tolist() == np.repeat(np.arange(3), batch.response_lengths[rows]).tolist()
        assert laid.flat.tolist() == batch.flat_index(rows.tolist()).tolist()


def test_packed_row_equals_padded_rows(tiny_model):
    batch = make_batch()
    network = PolicyNetwork(load_policy(ModelConfig(path=str(tiny_model.untied), dtype="float32")))
    results = []
    for packed in (False, True):
        laid = build_microbatch(batch, np.arange(batch.rows), packed, CPU)
        outputs = network(laid.input_ids, laid.position_ids, laid.before, laid.targets, need_entropy=True)
        loss = (outputs["logprobs"] * torch.linspace(-1, 1, len(laid.targets))).sum() + outputs["entropy"].sum()
        results.append((outputs, torch.autograd.grad(loss, list(network.parameters()))))
    torch.testing.assert_close(results[0], results[1], atol=2e-5, rtol=1e-4)


def test_no_rows_give_a_stand_in_whose_columns_are_zero():
    laid = build_microbatch(make_batch(), np.zeros(0, np.int64), False, CPU)
    assert laid.stand_in
    columns = select_columns(laid, {"weight": np.ones(35, np.float32)}, {"rank": np.ones(6, np.int32)})
    assert columns["weight"].tolist() == [0.0]
    assert columns["rank"].tolist() == [0]
    assert columns["rank"].dtype == torch.int32


def test_columns_follow_the_rows():
    batch = make_batch()
    laid = build_microbatch(batch, np.array([3, 1]), False, CPU)
    tokens = int(batch.response_lengths.sum())
    columns = select_columns(laid, {"place": np.arange(tokens)}, {"row": np.arange(batch.rows)})
    assert columns["place"].tolist() == batch.flat_index([3, 1]).tolist()
    assert columns["row"].tolist() == [3, 1]


def test_passes_by_length_are_the_micro_batch(monkeypatch, tiny_model):
    """Outputs and columns of the passes, put together, are those of one pass, row for row; gradients too."""
    monkeypatch.setattr(microbatch, "START_TOKENS_CPU", 0)
    batch, rows = make_batch(), np.array([4, 0, 2, 3])
    network = PolicyNetwork(load_policy(ModelConfig(path=str(tiny_model.untied), dtype="float32")))
    tokens = int(batch.response_lengths.sum())
    columns, row_columns = {"place": np.arange(tokens)}, {"row": np.arange(batch.rows)}
    results = []
    for parts in ([build_microbatch(batch, rows, False, CPU)], lay_out_passes(batch, rows, False, False, True, CPU)):
        outputs = join_outputs([network(p.input_ids, p.position_ids, p.before, p.targets) for p in parts])["logprobs"]
        joined = join_columns(parts, columns, row_columns)
        order = joined["place"].argsort()
        loss = (outputs[order] * torch.linspace(-1, 1, len(order))).sum()
        found = torch.autograd.grad(loss, list(network.parameters()))
        results.append((outputs[order], joined["place"][order], joined["row"][joined["rows"]][order], found))
        assert sorted(joined["row"].tolist()) == sorted(rows.tolist())
        put = in_order(rows, parts, {"logprobs": joined["place"], "scores": joined["row"]})
        assert put["logprobs"].tolist() == batch.flat_index(rows.tolist()).tolist()
        assert put["scores"].tolist() == rows.tolist()
    assert len(parts) == len(set(batch.lengths[rows].tolist())) > 1
    monkeypatch.setattr(microbatch, "START_TOKENS_CPU", 1000)
    [one] = lay_out_passes(batch, rows, False, False, True, CPU)
    assert in_order(rows, [one], {"scores": torch.from_numpy(one.row_index)})["scores"].tolist() == rows.tolist()
    assert len(lay_out_passes(batch, rows, True, False, True, CPU)) == 1
    assert len(lay_out_passes(batch, rows, False, False, False, CPU)) == 1
    torch.testing.assert_close(*results, atol=2e-5, rtol=1e-4)


def test_rows_without_responses_have_no_tokens():
    ids = np.array([7, 8, 9], dtype=np.int32)
    batch = TokenBatch.from_sequences([ids, ids[:1]], [ids[:0], ids[:2]])
    laid = build_microbatch(batch, np.array([0, 1]), False, CPU)
    assert laid.targets.tolist() == [7, 8]
    assert laid.rows.tolist() == [1, 1]

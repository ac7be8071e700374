"""Losses equal plain loops written from the papers, in value; and central differences of those loops, in gradient."""

import math
from collections.abc import Callable
from typing import get_args

import oracle
import pytest
import torch
from loss_batches import GROUPS, RANKS, SUBJECTS, Batch, objective, pair_batch, score_batch
from torch import Tensor

from rlhf_ray.algorithms.preference_losses import aot_statistic, aot_unpaired_statistics
from rlhf_ray.algorithms.preferences import COUPLED, PairLossName, Pairs, PreferenceObjective
from rlhf_ray.algorithms.ranking import RankingLoss, ranking_weights


def token_oracle(name: str, batch: Batch) -> float:
    """Sum over tokens of weight times the formula, in plain loops."""
    columns, outputs = plain(batch.tokens), plain(batch.outputs)
    rows, total = batch_rows(batch), 0.0
    for t, weight in enumerate(columns["weight"]):
        if weight == 0:
            continue
        token = {key: values[t] for key, values in (columns | outputs).items()}
        if "logprobs" in outputs:
            own = [k for k in range(len(rows)) if rows[k] == rows[t] and columns["weight"][k] != 0]
            logs = [outputs["logprobs"][k] - columns["old_logprobs"][k] for k in own]
            token |= {
                "ratio": math.exp(outputs["logprobs"][t] - columns["old_logprobs"][t]),
                "row_ratio": math.exp(sum(logs)),
                "mean_ratio": math.exp(sum(logs) / len(logs)),
            }
        total += weight * FORMULAS[name](token)
    return total


def plain(tensors: dict[str, Tensor]) -> dict[str, list]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def clipped(token: dict, ratio: str, low: float, high: float, dual: float | None = None) -> float:
    return token["importance_weights"] * oracle.clipped(token[ratio], token["advantages"], low, high, dual)


def k3(token: dict) -> float:
    return oracle.kl(token["logprobs"], token["reference_logprobs"], "k3")


def value_loss(token: dict, clip: float | None) -> float:
    return oracle.value_loss(token["values"], token["old_values"], token["returns"], clip)


FORMULAS: dict[str, Callable[[dict], float]] = {
    "ppo": lambda token: clipped(token, "ratio", 0.2, 0.28, 3.0),
    "ppo_entropy_kl": lambda token: clipped(token, "ratio", 0.2, 0.2) + 0.05 * k3(token) - 0.01 * token["entropy"],
    "ppo_sequence": lambda token: clipped(token, "row_ratio", 0.2, 0.2),
    "gspo_sequence": lambda token: clipped(token, "mean_ratio", 0.1, 0.1),
    "sapo": lambda token: token["importance_weights"] * oracle.sapo(token["ratio"], token["advantages"], 1.0, 1.05),
    "ppo_kl_by_ratio": lambda token: clipped(token, "ratio", 0.2, 0.28) + 0.1 * token["ratio"] * k3(token),
    "sft": lambda token: -token["logprobs"],
    "value": lambda token: value_loss(token, 0.2),
    "value_unclipped": lambda token: value_loss(token, None),
}


def batch_rows(batch: Batch) -> list[int]:
    return torch.arange(len(batch.lengths)).repeat_interleave(batch.lengths).tolist()


@pytest.mark.parametrize("name", FORMULAS)
def test_token_losses_equal_loops_and_their_differences(name: str) -> None:
    subject = SUBJECTS[name]
    batch = subject.batch()
    loss, _, grad = batch.run(subject.loss)
    assert loss.item() == pytest.approx(token_oracle(name, batch), rel=1e-10)
    if name == "ppo_entropy_kl":
        return  # Its KL has the gradient of k2 on purpose; the golden numbers hold it.
    assert_numerical_gradient(batch, grad, lambda: token_oracle(name, batch))


def assert_numerical_gradient(batch: Batch, grad: Tensor, value: Callable[[], float], step: float = 1e-6) -> None:
    """Central differences of the oracle equal the gradient of the loss."""
    output = next(iter(batch.outputs.values()))
    for index in range(len(output)):
        middle = output[index].item()
        sides = []
        for side in (step, -step):
            output[index] = middle + side
            sides.append(value())
        output[index] = middle
        assert grad[index].item() == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-5, abs=1e-7)


def preference_oracle(kind: str, batch: Batch) -> float:
    rows, written = batch_rows(batch), batch.tokens["written"].tolist()
    logprobs, reference = batch.outputs["logprobs"].tolist(), batch.rows["reference_logprobs"].tolist()
    settings, total = objective(kind), 0.0
    for pair in range(3):
        sides = {}
        for row in (2 * pair, 2 * pair + 1):
            own = [t for t in range(len(rows)) if rows[t] == row and written[t]]
            value = sum(logprobs[t] for t in own)
            if settings.needs_reference:
                value -= reference[row]
            if kind in ("ipo", "simpo", "orpo"):
                value /= len(own)
            sides[int(batch.rows["rank"][row])] = value
        total += oracle.preference(kind, sides[0], sides[1], settings.beta, settings.label_smoothing) / 3
    return total


@pytest.mark.parametrize("kind", sorted(set(get_args(PairLossName)) - COUPLED))
def test_preference_losses_equal_loops_and_their_differences(kind: str) -> None:
    batch = pair_batch()
    loss, _, grad = batch.run(SUBJECTS[kind].loss)
    assert loss.item() == pytest.approx(preference_oracle(kind, batch), rel=1e-9)
    assert_numerical_gradient(batch, grad, lambda: preference_oracle(kind, batch))


@pytest.mark.parametrize("by_list", [False, True])
def test_ranking_loss_equals_loops_and_its_differences(by_list: bool) -> None:
    batch = score_batch()
    del batch.rows["margin"]
    batch.rows["weight"] = ranking_weights(GROUPS, RANKS, "lists" if by_list else "pairs", dtype=torch.float64)
    loss, _, grad = batch.run(RankingLoss())

    def value() -> float:
        return oracle.ranking(batch.outputs["scores"].tolist(), GROUPS.tolist(), RANKS.tolist(), by_list)

    assert loss.item() == pytest.approx(value(), rel=1e-12)
    assert_numerical_gradient(batch, grad, value)


@pytest.mark.parametrize("kind", sorted(COUPLED))
def test_coupled_objectives_equal_the_whole_step_written_at_once(kind: str) -> None:
    """Statistics from a first pass, used as constants, give the value and gradient of the coupled formula itself."""
    torch.manual_seed(3)
    chosen, rejected = (torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ref_chosen, ref_rejected = torch.randn(2, 6, dtype=torch.float64)
    c, r, beta = chosen - ref_chosen, rejected - ref_rejected, 0.1
    if kind == "bco":
        shift = beta * torch.cat([c, r]).mean().detach()
        statistics = [shift.expand(6)] * 2
        losses = -(beta * c - shift).sigmoid().log() - (shift - beta * r).sigmoid().log()
    elif kind == "aot":
        statistics = [aot_statistic(chosen.detach(), rejected.detach(), ref_chosen, ref_rejected)] * 2
        delta = (chosen - rejected).sort().values - (ref_chosen - ref_rejected).sort().values
        losses = -(beta * delta).sigmoid().log()
    else:
        statistics = aot_unpaired_statistics(c.detach(), r.detach())
        losses = -(beta * (c.sort().values - r.sort().values)).sigmoid().log()
    expected = torch.autograd.grad(losses.mean(), (chosen, rejected))
    ones = torch.ones(6)
    found = PreferenceObjective(kind, beta)(
        Pairs(chosen, rejected, ref_chosen, ref_rejected, ones, ones, *statistics)
    ).mean()
    torch.testing.assert_close(found, losses.mean())
    for mine, theirs in zip(torch.autograd.grad(found, (chosen, rejected)), expected, strict=True):
        torch.testing.assert_close(mine, theirs)

"""Columns of `rlhf dpo` against the formulas written out over the whole step, as TRL computes them."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rlhf_ray.config.preferences import PreferenceLossConfig
from rlhf_ray.data.bad_rows import ReadReport
from rlhf_ray.data.batches import TokenBatch
from rlhf_ray.data.loading import Loaded
from rlhf_ray.data.preferences import Answer, LabelledRow, PairRow
from rlhf_ray.jobs.supervised.preferences import LabelledTask, PairTask
from rlhf_ray.jobs.supervised.reference import ReferenceLogprobs

BETA = 0.2
GENERATOR = np.random.default_rng(0)


def ids(count: int) -> np.ndarray:
    return GENERATOR.integers(0, 50, count).astype(np.int32)


PAIRS = [PairRow(n, ids(2 + n), ids(3 + 2 * n), ids(6 - n)) for n in range(5)]
LABELLED = [LabelledRow(n, ids(2), ids(3 + n), n % 3 > 0, ids(4)) for n in range(5)]


def model(seed: int) -> Callable[[TokenBatch], np.ndarray]:
    """Log-probabilities that depend on the token and on the one before it."""
    table = -np.random.default_rng(seed).random((50, 50)).astype(np.float32) * 3

    def logprobs(batch: TokenBatch) -> np.ndarray:
        starts = batch.offsets[:-1] + batch.prompt_lengths
        places = np.concatenate([np.arange(s, s + n) for s, n in zip(starts, batch.response_lengths, strict=True)])
        return table[batch.ids[places - 1], batch.ids[places]]

    return logprobs


POLICY, REFERENCE = model(1), model(2)


def log_ratio(answer: Answer) -> float:
    batch = TokenBatch.from_sequences([answer.prompt_ids], [answer.response_ids])
    return float((POLICY(batch).astype(np.float64) - REFERENCE(batch)).sum())


def logprob(answer: Answer, of: Callable[[TokenBatch], np.ndarray] = POLICY) -> float:
    return float(of(TokenBatch.from_sequences([answer.prompt_ids], [answer.response_ids])).astype(np.float64).sum())


NO_TRAINER: Any = None
"""Nobody asks it once the task knows the policy."""


def loaded(rows: list[Any]) -> Loaded[Any]:
    return Loaded(rows, ReadReport("rows", 0.0, rows=len(rows)), "")


def ready(task: Any) -> Any:
    task.start_from(POLICY, ReferenceLogprobs(None, "", REFERENCE, 1000, lambda _: None))
    return task


def pair_task(**loss: Any) -> PairTask:
    return ready(PairTask(PreferenceLossConfig(beta=BETA, **loss), loaded(PAIRS), loaded(PAIRS), 5))


def labelled_task(kind: Any, **loss: Any) -> LabelledTask:
    config = PreferenceLossConfig(type=kind, beta=BETA, **loss)
    return ready(LabelledTask(kind, config, loaded(LABELLED), loaded(LABELLED), 5))


def trained(task: Any, rows: list[Any]) -> float:
    """Loss of a training step, from the columns that the ranks get."""
    batch = task.batch(rows)
    columns = {name: torch.from_numpy(values) for name, values in {**batch.columns, **batch.row_columns}.items()}
    columns["rows"] = torch.from_numpy(np.repeat(np.arange(batch.tokens.rows), batch.tokens.response_lengths))
    return float(task.loss({"logprobs": torch.from_numpy(POLICY(batch.tokens))}, columns)[0])


def sides(value: Callable[[Answer], float]) -> tuple[Tensor, Tensor]:
    answers = [row.answers() for row in PAIRS]
    return torch.tensor([value(a) for a, _ in answers]).double(), torch.tensor([value(b) for _, b in answers]).double()


C, R = sides(log_ratio)
LENGTHS = sides(lambda answer: len(answer.response_ids))
SUMS, REFERENCE_SUMS = sides(logprob), sides(lambda answer: logprob(answer, REFERENCE))
SORTED_AOT = (SUMS[0] - SUMS[1]).sort().values - (REFERENCE_SUMS[0] - REFERENCE_SUMS[1]).sort().values
SHIFT = BETA * torch.cat([C, R]).mean()
EXPECTED: dict[str, Tensor] = {
    "sigmoid": -F.logsigmoid(BETA * (C - R)),
    "ipo": (C / LENGTHS[0] - R / LENGTHS[1] - 1 / (2 * BETA)).square(),
    "hinge": torch.relu(1 - BETA * (C - R)),
    "apo_zero": 1 - torch.sigmoid(BETA * C) + torch.sigmoid(BETA * R),
    "apo_down": torch.sigmoid(BETA * C) + 1 - torch.sigmoid(BETA * (C - R)),
    "aot": -F.logsigmoid(BETA * SORTED_AOT),
    "aot_unpaired": -F.logsigmoid(BETA * (C.sort().values - R.sort().values)),
    "bco": -F.logsigmoid(BETA * C - SHIFT) - F.logsigmoid(SHIFT - BETA * R),
    "simpo": -F.logsigmoid(BETA * (SUMS[0] / LENGTHS[0] - SUMS[1] / LENGTHS[1]) - 0.5),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_pairs(kind: str) -> None:
    assert trained(pair_task(type=kind), PAIRS) == pytest.approx(float(EXPECTED[kind].mean()), abs=1e-5)


def test_the_order_of_rows_does_not_matter() -> None:
    for kind in ("sigmoid", "aot", "bco"):
        assert trained(pair_task(type=kind), PAIRS[::-1]) == pytest.approx(float(EXPECTED[kind].mean()), abs=1e-5)


def test_losses_are_weighed_and_the_likelihood_is_of_chosen_tokens() -> None:
    task = pair_task(type=["sigmoid", "hinge"], weights=[0.5, 2.0], nll_coefficient=0.3)
    nll = -float(SUMS[0].sum() / LENGTHS[0].sum())
    expected = 0.5 * EXPECTED["sigmoid"].mean() + 2 * EXPECTED["hinge"].mean() + 0.3 * nll
    assert trained(task, PAIRS) == pytest.approx(float(expected), abs=1e-5)
    orpo = trained(pair_task(type="orpo"), PAIRS) - trained(pair_task(type="orpo", nll_coefficient=0), PAIRS)
    assert orpo == pytest.approx(nll, abs=1e-5), "its own coefficient is 1"


def test_desensitised_lengths_hold_for_policy_and_reference() -> None:
    def ratio(answer: Answer) -> float:
        batch = TokenBatch.from_sequences([answer.prompt_ids], [answer.response_ids])
        return float(((POLICY(batch).astype(np.float64) - REFERENCE(batch)) * answer.shares).sum())

    differences = [ratio(a) - ratio(b) for a, b in (row.answers(0.4) for row in PAIRS)]
    expected = np.mean([math.log1p(math.exp(-BETA * difference)) for difference in differences])
    assert trained(pair_task(length_desensitisation=0.4), PAIRS) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["simpo", "cpo", "orpo"])
def test_losses_without_a_reference_ask_for_none(kind: str) -> None:
    config = PreferenceLossConfig(type=kind)
    task = PairTask(config, loaded(PAIRS), None, 5)
    assert not task.needs_reference
    task.start_from(POLICY, None)
    assert math.isfinite(trained(task, PAIRS))


def labelled_values(value: Callable[[LabelledRow], float]) -> Tensor:
    return torch.tensor([value(row) for row in LABELLED]).double()


def test_kto_compares_with_mismatched_answers() -> None:
    ratios = labelled_values(lambda row: log_ratio(row.answer))
    kl = labelled_values(lambda row: log_ratio(row.mismatch)).mean()
    assert kl > 0, "or it would be held at 0"
    desirable = torch.tensor([row.desirable for row in LABELLED])
    wanted, unwanted = 1 - torch.sigmoid(BETA * (ratios - kl)), 1 - torch.sigmoid(BETA * (kl - ratios))
    expected = torch.where(desirable, 1.5 * wanted, 0.5 * unwanted).mean()
    task = labelled_task("kto", desirable_weight=1.5, undesirable_weight=0.5)
    assert trained(task, LABELLED) == pytest.approx(float(expected), abs=1e-5)
    metrics = task.evaluate(NO_TRAINER, LABELLED)
    assert metrics["kl"] == pytest.approx(float(kl), abs=1e-4)
    assert metrics["loss"] == pytest.approx(float(expected), abs=1e-5)
    assert metrics["rewards/chosen"] == pytest.approx(float(BETA * ratios[desirable].mean()), abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(float(BETA * ratios[~desirable].mean()), abs=1e-5)
    sums = labelled_values(lambda row: logprob(row.answer))
    assert metrics["logps/rejected"] == pytest.approx(float(sums[~desirable].mean()), abs=1e-4)


def test_metrics_of_a_side_that_is_not_there_are_left_out() -> None:
    metrics = labelled_task("apo_zero_unpaired").evaluate(NO_TRAINER, [row for row in LABELLED if row.desirable])
    assert "rewards/chosen" in metrics
    assert not {"rewards/rejected", "rewards/margins", "count/chosen"} & metrics.keys()


def test_bco_compares_with_the_mean_of_the_run() -> None:
    task = labelled_task("bco")
    rewards = BETA * labelled_values(lambda row: log_ratio(row.answer))
    desirable = torch.tensor([row.desirable for row in LABELLED])

    def expected(rows: slice, shift: Tensor) -> float:
        advantage = torch.where(desirable, rewards - shift, shift - rewards)[rows]
        return float(-F.logsigmoid(advantage).mean())

    assert trained(task, LABELLED[:3]) == pytest.approx(expected(slice(3), rewards[:3].mean()), abs=1e-5)
    saved = task.state()
    assert trained(task, LABELLED[3:]) == pytest.approx(expected(slice(3, 5), rewards.mean()), abs=1e-5)
    assert task.evaluate(NO_TRAINER, LABELLED[:3])["loss"] == pytest.approx(
        expected(slice(3), rewards.mean()), abs=1e-5
    )
    resumed = labelled_task("bco")
    resumed.load(saved)
    assert trained(resumed, LABELLED[3:]) == pytest.approx(expected(slice(3, 5), rewards.mean()), abs=1e-5)


def test_an_evaluation_in_parts_is_their_mean_by_rows() -> None:
    config = PreferenceLossConfig(beta=BETA)
    task = ready(PairTask(config, loaded(PAIRS), loaded(PAIRS), rows_per_step=2))
    metrics = task.evaluate(NO_TRAINER, PAIRS)
    assert metrics["loss"] == pytest.approx(float(EXPECTED["sigmoid"].mean()), abs=1e-5)
    assert metrics["rewards/accuracies"] == pytest.approx(float((C > R).double().mean()))

"""What holds for every loss: micro-batches add up, masked tokens cannot leak, extremes stay finite."""

import pickle
from typing import get_args

import numpy as np
import pytest
import torch
from loss_batches import SUBJECTS, Subject, pair_batch, policy_batch

from rlhf_ray.algorithms.losses import Loss
from rlhf_ray.algorithms.policy_losses import ClippedPolicyLoss
from rlhf_ray.algorithms.preference_losses import KTOLoss, PreferenceLoss
from rlhf_ray.algorithms.preferences import PLAIN_SUMS, REFERENCE_FREE, PairLossName, Pairs, PreferenceObjective
from rlhf_ray.algorithms.ranking import ranking_quality, ranking_weights
from rlhf_ray.algorithms.segments import row_index

every_loss = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


@every_loss
def test_micro_batches_add_up_to_the_step(subject: Subject) -> None:
    whole_loss, whole_metrics, whole_grad = subject.batch().run(subject.loss)
    parts = [subject.batch().run(subject.loss, rows) for rows in subject.splits]
    torch.testing.assert_close(sum(loss for loss, _, _ in parts), whole_loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(grad for _, _, grad in parts), whole_grad, rtol=1e-12, atol=1e-12)
    for name, value in whole_metrics.items():
        torch.testing.assert_close(sum(metrics[name] for _, metrics, _ in parts), value, rtol=1e-12, atol=1e-12)
    assert whole_grad.abs().sum() > 0


@every_loss
def test_nan_where_nothing_is_learned_leaks_nowhere(subject: Subject) -> None:
    clean, dirty = subject.batch(), subject.batch()
    if subject.batch is pair_batch:
        idle = dirty.tokens["written"] == 0
        dead = row_index(torch.cat([torch.zeros(1).long(), dirty.lengths.cumsum(0)])) >= 6
        dirty.outputs["logprobs"][idle | dead] = torch.nan
        dirty.rows["reference_logprobs"][6:] = torch.nan
    else:
        weight = dirty.tokens.get("weight", dirty.rows.get("weight"))
        for values in [*dirty.outputs.values(), *dirty.tokens.values(), *dirty.rows.values()]:
            if values is not weight and values.is_floating_point() and len(values) == len(weight):
                values[weight == 0] = torch.nan
    expected, actual = clean.run(subject.loss), dirty.run(subject.loss)
    torch.testing.assert_close(actual[0], expected[0])
    torch.testing.assert_close(actual[2], expected[2])
    torch.testing.assert_close(actual[1], expected[1])


@every_loss
def test_all_masked_is_zero_with_zero_gradient(subject: Subject) -> None:
    batch = subject.batch()
    for columns in (batch.tokens, batch.rows):
        for name in ("weight", "nll_weight"):
            if name in columns:
                columns[name] = torch.zeros_like(columns[name])
    loss, metrics, grad = batch.run(subject.loss)
    assert loss == 0
    assert not grad.any()
    assert all(not value.any() for value in metrics.values())


@every_loss
def test_one_row_without_company(subject: Subject) -> None:
    """As a rank with nothing to do computes it: one row, weight 0."""
    batch = subject.batch()
    for columns in (batch.tokens, batch.rows):
        for name in columns:
            columns[name] = torch.zeros_like(columns[name])
    loss, _, grad = batch.run(subject.loss, [0])
    assert loss == 0
    assert not grad.any()


@every_loss
@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_extremes_stay_finite_in_float32(subject: Subject, scale: float) -> None:
    batch = subject.batch(torch.float32)
    for columns in (batch.outputs, batch.tokens, batch.rows):
        for name, values in columns.items():
            if values.is_floating_point() and name not in ("weight", "nll_weight", "written", "importance_weights"):
                columns[name] = values * scale
    first = next(iter(batch.outputs))
    if first == "logprobs":
        batch.outputs[first][::3] = 0.0
    loss, metrics, grad = batch.run(subject.loss)
    assert loss.isfinite()
    assert grad.isfinite().all()
    assert all(value.isfinite() for value in metrics.values())


@every_loss
def test_losses_travel_and_keep_the_protocol(subject: Subject) -> None:
    assert isinstance(subject.loss, Loss)
    assert pickle.loads(pickle.dumps(subject.loss)) == subject.loss
    assert subject.loss.needs_entropy == (subject.loss == SUBJECTS["ppo_entropy_kl"].loss)


def test_rankings_of_ties_alone_have_no_weight() -> None:
    groups, ranks = torch.tensor([5, 5, 9]), torch.tensor([0, 0, 0])
    for aggregation in ("pairs", "lists"):
        assert not ranking_weights(groups, ranks, aggregation).any()
    with pytest.raises(ValueError, match="choose pairs or lists"):
        ranking_weights(groups, ranks, "rows")


def test_ranking_quality_counts_equal_scores_as_wrong() -> None:
    groups, ranks = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 1, 1, 0, 0, 0])
    quality = ranking_quality(torch.tensor([1.0, 1.0, 0.0, 2.0, 5.0, 6.0]), groups, ranks)
    assert quality.pair_accuracy == 0.5
    assert quality.exact_list_accuracy == 0.5
    assert quality.kendall_tau == 0.5


def test_dpo_starts_at_ln_2() -> None:
    lengths = torch.tensor([4.0, 2.0])
    logprobs = torch.tensor([-3.0, -5.0])
    pairs = Pairs(logprobs, logprobs - 1, logprobs, logprobs - 1, lengths, lengths)
    torch.testing.assert_close(PreferenceObjective()(pairs), torch.full((2,), 0.6931472))


@pytest.mark.parametrize(
    "settings",
    [{"kind": "dpo"}, {"beta": 0.0}, {"beta": -1.0}, {"label_smoothing": 0.5}, {"kind": "exo"}],
    ids=["name", "zero", "negative", "smoothing", "exo"],
)
def test_impossible_objectives_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match=r"named|beta|label_smoothing"):
        PreferenceObjective(**settings)


def test_coupled_objectives_ask_for_their_statistics() -> None:
    values = torch.zeros(2)
    with pytest.raises(ValueError, match="first pass"):
        PreferenceObjective("aot")(Pairs(values, values, values, values, values, values))


def test_entropy_gradient_reaches_the_entropy() -> None:
    batch = policy_batch()
    batch.outputs = {"entropy": batch.outputs["entropy"], "logprobs": batch.outputs["logprobs"]}
    _, _, grad = batch.run(ClippedPolicyLoss(entropy_coefficient=0.01))
    torch.testing.assert_close(grad, -0.01 * batch.tokens["weight"])


@pytest.mark.parametrize(
    ("divergence", "kind"),
    [
        (divergence, kind)
        for divergence in ("reverse_kl", "forward_kl", "js", "alpha")
        for kind in get_args(PairLossName)
        if divergence == "reverse_kl" or kind not in REFERENCE_FREE | PLAIN_SUMS
    ],
)
def test_preferences_far_apart_stay_finite(kind: str, divergence: str) -> None:
    """Right, wrong and certain by thousands of nats, in float32."""
    chosen = torch.tensor([-1e4, 0.0, 0.0, -1e4], requires_grad=True)
    rejected = torch.tensor([0.0, -1e4, 0.0, -1e4], requires_grad=True)
    zeros, lengths = torch.zeros(4), torch.ones(4)
    objective = PreferenceObjective(kind, label_smoothing=0.1, alpha=0.25, divergence=divergence)
    losses = objective(Pairs(chosen, rejected, zeros, zeros, lengths, lengths, zeros, zeros))
    losses.sum().backward()
    assert losses.isfinite().all()
    for side in (chosen, rejected):
        assert side.grad is None or side.grad.isfinite().all()


@pytest.mark.parametrize(
    ("kind", "field"), [("aot", "length_normalised"), ("aot", "divergence"), ("cpo", "divergence")]
)
def test_settings_that_an_objective_ignores_are_refused(kind: str, field: str) -> None:
    value = {"length_normalised": False, "divergence": "js"}[field]
    with pytest.raises(ValueError, match=f"{field}.* {kind}"):
        PreferenceObjective(kind, **{field: value})


@pytest.mark.parametrize("tokens", [2048, 8192])
def test_a_policy_that_did_not_move_has_a_log_ratio_of_0(tokens: int) -> None:
    """However long the answers: a sum in float32 is off by up to 0.1 nats at 8,192 tokens of 4 nats."""
    logprobs = -4 + 0.1 * torch.randn(2 * tokens, generator=torch.Generator().manual_seed(1))
    sums = logprobs.numpy().astype(np.float64).reshape(2, tokens).sum(1)
    columns = {
        "rows": torch.arange(2).repeat_interleave(tokens),
        "written": torch.ones(2 * tokens),
        "weight": torch.ones(2),
        "group": torch.zeros(2, dtype=torch.long),
        "rank": torch.arange(2),
        "reference_logprobs": torch.from_numpy(sums),
        "desirable": torch.tensor([True, False]),
        "kto_statistic": torch.zeros(2),
    }
    for loss in (PreferenceLoss(), KTOLoss()):
        _, metrics = loss({"logprobs": logprobs}, columns)
        for name in ("rewards/chosen", "rewards/rejected"):
            assert metrics[name].abs() < 1e-8


@every_loss
def test_values_of_another_shape_are_refused(subject: Subject) -> None:
    """[n, 1] beside [n] would become [n, n], and the loss the mean of all pairs of tokens."""
    names = [*subject.batch().outputs, *subject.batch().tokens, *subject.batch().rows]
    refused, expected = 0, subject.batch().run(subject.loss)[0]
    for name in names:
        batch = subject.batch()
        for columns in (batch.outputs, batch.tokens, batch.rows):
            if name in columns:
                columns[name] = columns[name][:, None]
        try:
            torch.testing.assert_close(batch.run(subject.loss)[0], expected)  # a column that the loss does not read
        except (ValueError, RuntimeError, IndexError) as error:
            refused += isinstance(error, ValueError) and "shape" in str(error)
    assert refused > 0

"""Vectorised estimates equal plain loops on ragged rows with gaps, and stay finite at the edges."""

import importlib
import inspect
import math
import pkgutil

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import rlhf_ray.algorithms
from rlhf_ray.algorithms.advantages import discounted_returns, dr_grpo, gae, grpo, opo, remax, rloo
from rlhf_ray.algorithms.aggregation import token_weights
from rlhf_ray.algorithms.kl import AdaptiveKL, FixedKL, kl_estimate
from rlhf_ray.algorithms.lagrangian import LagrangeMultiplier, combined_advantages
from rlhf_ray.algorithms.off_policy import OffPolicyCorrection
from rlhf_ray.algorithms.preferences import Pairs
from rlhf_ray.algorithms.rewards import RunningMoments, overlong_penalty, penalise_missing_eos, token_rewards
from rlhf_ray.algorithms.segments import last_of_rows, row_index, token_row_sums
from rlhf_ray.algorithms.statistics import explained_variance, masked_mean, masked_variance, whiten

CHECKS = settings(max_examples=60, deadline=None)
numbers = st.floats(-5, 5, allow_nan=False, width=32)


@st.composite
def ragged(draw: st.DrawFn, columns: int) -> tuple[list[list[bool]], list[list[list[float]]]]:
    """Masks of some rows (rows may be empty or wholly masked) and columns of numbers."""
    lengths = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5))
    masks = [draw(st.lists(st.booleans(), min_size=n, max_size=n)) for n in lengths]
    values = [[draw(st.lists(numbers, min_size=n, max_size=n)) for n in lengths] for _ in range(columns)]
    return masks, values


def flat(rows: list) -> Tensor:
    values = [v for row in rows for v in row]
    return torch.tensor(values, dtype=torch.bool if values and isinstance(values[0], bool) else torch.float64)


def mask_of(rows: list[list[bool]]) -> Tensor:
    return torch.tensor([v for row in rows for v in row], dtype=torch.bool)


def offsets_of(rows: list) -> Tensor:
    return torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)


@CHECKS
@given(ragged(2), st.floats(0.1, 1), st.floats(0, 1))
def test_gae_equals_loops(batch, gamma, decay) -> None:
    masks, (rewards, values) = batch
    written = mask_of(masks)
    actual = gae(flat(rewards), flat(values), written, offsets_of(masks), gamma, decay)
    for mine, expected in zip(actual, oracle.gae(rewards, values, masks, gamma, decay), strict=True):
        torch.testing.assert_close(mine, flat(expected).double(), rtol=1e-9, atol=1e-9)


@CHECKS
@given(ragged(2))
def test_gae_does_not_look_at_tokens_that_others_wrote(batch) -> None:
    masks, (rewards, values) = batch
    written, offsets = mask_of(masks), offsets_of(masks)
    noise = torch.where(written, 0.0, torch.nan)
    clean = gae(flat(rewards).double(), flat(values).double(), written, offsets, 0.9, 0.8)
    dirty = gae(flat(rewards) + noise, flat(values) + noise, written, offsets, 0.9, 0.8)
    for one, other in zip(clean, dirty, strict=True):
        assert torch.equal(one, other)


def test_gae_keeps_nan_in_its_row() -> None:
    rewards = torch.tensor([1.0, 1.0, torch.nan, 1.0])
    written, offsets = torch.ones(4, dtype=torch.bool), torch.tensor([0, 2, 4])
    advantages, _ = gae(rewards, torch.zeros(4), written, offsets, 1.0, 1.0)
    assert torch.equal(advantages[:2], torch.tensor([2.0, 1.0]))


def test_gae_on_long_rows_in_float32() -> None:
    torch.manual_seed(0)
    lengths = [3000, 1, 517, 1024]
    rewards = [torch.randn(n).tolist() for n in lengths]
    values = [torch.randn(n).tolist() for n in lengths]
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    written = torch.rand(sum(lengths)) > 0.3
    reward, value = flat(rewards), flat(values)
    exact = gae(reward, value, written, offsets, 0.999, 0.95)
    single = gae(reward.float(), value.float(), written, offsets, 0.999, 0.95)
    running, expected = 0.0, torch.zeros(lengths[0]).double()
    steps = written[: lengths[0]].nonzero().flatten().tolist()
    for t, following in zip(reversed(steps), [None, *reversed(steps[1:])], strict=True):
        ahead = 0.0 if following is None else float(value[following])
        running = float(reward[t] + 0.999 * ahead - value[t]) + (0.999 * 0.95 * running if following else 0.0)
        expected[t] = running
    torch.testing.assert_close(exact[0][: lengths[0]], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(single[0].double(), exact[0], rtol=1e-4, atol=1e-4)


@CHECKS
@given(ragged(1), st.floats(-1, 1), st.lists(numbers, min_size=5, max_size=5))
def test_token_rewards_equal_loops(batch, coefficient, scores) -> None:
    masks, (kl,) = batch
    scores = scores[: len(masks)]
    noise = torch.where(mask_of(masks), 0.0, torch.nan)
    tensor = torch.tensor(scores, dtype=torch.float64)
    actual = token_rewards(tensor, flat(kl) + noise, mask_of(masks), offsets_of(masks), coefficient)
    expected = flat(oracle.token_rewards(scores, kl, masks, coefficient)).double()
    torch.testing.assert_close(actual.double(), expected)


@CHECKS
@given(ragged(1))
def test_returns_without_values_are_sums_of_rewards(batch) -> None:
    masks, (rewards,) = batch
    actual = discounted_returns(flat(rewards).double(), mask_of(masks), offsets_of(masks), 1.0)
    expected = [
        [sum(r for r, own in zip(row[t:], mask[t:], strict=True) if own) if mask[t] else 0.0 for t in range(len(row))]
        for row, mask in zip(rewards, masks, strict=True)
    ]
    torch.testing.assert_close(actual, flat(expected).double())


@CHECKS
@given(ragged(1))
def test_whitening_equals_loops(batch) -> None:
    masks, (values,) = batch
    mask = mask_of(masks)
    noise = torch.where(mask, 0.0, torch.nan)
    actual = whiten(flat(values) + noise, mask)
    # Values that differ by rounding alone are blown up by the floor of the variance, so the bound is loose there.
    torch.testing.assert_close(actual.double(), flat(oracle.whiten(values, masks)).double(), rtol=1e-6, atol=1e-6)


def test_statistics_of_nothing_and_of_one() -> None:
    one, none = torch.tensor([True, False]), torch.tensor([False, False])
    values = torch.tensor([3.0, torch.nan])
    assert masked_mean(values, none) == 0
    assert masked_variance(values, one) == 0
    assert torch.equal(whiten(values, one), torch.zeros(2))
    assert torch.equal(whiten(values, none), torch.zeros(2))


def test_explained_variance_of_perfect_and_constant_values() -> None:
    returns, mask = torch.tensor([1.0, 2.0, 4.0]), torch.ones(3, dtype=torch.bool)
    assert explained_variance(returns, returns, mask) == 1
    torch.testing.assert_close(explained_variance(torch.zeros(3), returns, mask), torch.zeros(()).double())
    assert explained_variance(returns, torch.ones(3), mask).isfinite()


@CHECKS
@given(st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0)), min_size=1, max_size=6))
def test_kl_equals_its_formula(pairs) -> None:
    logprobs, reference = torch.tensor(pairs, dtype=torch.float64).T
    for estimator in ("k1", "abs", "k2", "k3"):
        expected = torch.tensor([oracle.kl(a, b, estimator) for a, b in pairs], dtype=torch.float64)
        torch.testing.assert_close(kl_estimate(logprobs, reference, estimator), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "abs", "k2", "k3", "k1+", "k3+"])
def test_kl_stays_finite_at_extremes(estimator) -> None:
    logprobs = torch.tensor([0.0, -1e4, 0.0, -50.0], requires_grad=True)
    kl = kl_estimate(logprobs, torch.tensor([-1e4, 0.0, 0.0, -80.0]), estimator)
    kl.sum().backward()
    assert kl.isfinite().all()
    assert logprobs.grad.isfinite().all()


def test_gradients_of_k2_and_straight_through_are_that_of_the_divergence() -> None:
    """Expected gradient under the policy equals that of the exact KL of two categorical distributions."""
    torch.manual_seed(0)
    logits, reference = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64).log_softmax(0)
    leaf = logits.clone().requires_grad_(True)
    logprobs = leaf.log_softmax(0)
    exact = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), leaf)[0]
    for estimator in ("k2", "k1+", "k3+"):
        leaf = logits.clone().requires_grad_(True)
        logprobs = leaf.log_softmax(0)
        estimate = (logprobs.detach().exp() * kl_estimate(logprobs, reference, estimator)).sum()
        torch.testing.assert_close(torch.autograd.grad(estimate, leaf)[0], exact)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no KL estimator"):
        kl_estimate(torch.zeros(1), torch.zeros(1), "k4")
    with pytest.raises(ValueError, match="no aggregation"):
        token_weights("mean", torch.ones(1).bool(), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="constant"):
        token_weights("sequence_mean_token_sum_norm", torch.ones(1).bool(), torch.tensor([0, 1]))


def test_controllers() -> None:
    assert FixedKL(0.1).update(100.0, 64) == FixedKL(0.1)
    controller = AdaptiveKL(0.1, target=6.0, horizon=1000.0)
    assert controller.update(60.0, 100).coefficient == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert controller.update(0.0, 100).coefficient == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert controller.update(6.0, 100) == controller


WILD = st.sampled_from([0.0, 1e-9, 0.3, 6.0, 1e9, math.inf, -1.0, math.nan])


@CHECKS
@given(st.sampled_from([1e-9, 0.1, 1e9]), st.lists(st.tuples(WILD, st.integers(1, 10**7)), min_size=1, max_size=40))
def test_an_adaptive_coefficient_stays_above_0_and_finite(first: float, batches) -> None:
    controller = AdaptiveKL(first, target=6.0, horizon=1000.0)
    for kl, samples in batches:
        before, controller = controller.coefficient, controller.update(kl, samples)
        assert 0.8 * before * (1 - 1e-9) <= controller.coefficient <= 1.2 * before * (1 + 1e-9)
        assert min(first, 1e-6) <= controller.coefficient <= max(first, 1e6)


@CHECKS
@given(
    st.sampled_from([1e-9, 1.0, 1e9]),
    st.sampled_from([None, 5.0]),
    st.lists(st.sampled_from([-1e12, -3.0, 0.0, 25.0, 1e12]), min_size=1, max_size=40),
)
def test_a_learned_lambda_stays_above_0_and_finite(first: float, maximum: float | None, costs: list[float]) -> None:
    multiplier = LagrangeMultiplier(first, 0.1, cost_limit=0.0, maximum=maximum)
    for cost in costs:
        multiplier = multiplier.update(cost)
        assert 0 < multiplier.value <= (maximum or max(first, 2.0**24)) * (1 + 1e-9)


def test_arguments_of_another_shape_are_refused_by_name() -> None:
    ones, offsets = torch.ones(4), torch.tensor([0, 1, 4])
    with pytest.raises(ValueError, match=r"kl_estimate: reference .*\(4, 1\).* \*n = \(4,\)"):
        kl_estimate(ones, ones[:, None], "k1")
    with pytest.raises(ValueError, match=r"gae: values .*\(4, 1\), but must have \[tokens\], with tokens = 4"):
        gae(ones, values=ones[:, None], written=ones.bool(), offsets=offsets, gamma=1.0, gae_lambda=1.0)
    with pytest.raises(ValueError, match="values of pairs"):
        Pairs(ones, ones, ones, ones, ones, ones[:, None])


def test_whatever_takes_several_tensors_checks_their_shapes() -> None:
    unchecked = []
    for info in pkgutil.iter_modules(rlhf_ray.algorithms.__path__):
        module = importlib.import_module(f"rlhf_ray.algorithms.{info.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            kinds = [p.annotation for p in inspect.signature(function).parameters.values()]
            tensors = [kind for kind in kinds if hasattr(kind, "dim_str")]
            own = function.__module__ == module.__name__ and not name.startswith("_")
            if own and len(tensors) > 1 and not hasattr(function, "__wrapped__"):
                unchecked.append(f"{info.name}.{name}")
    assert not unchecked


@CHECKS
@given(ragged(0), st.sampled_from(["token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum"]))
def test_aggregation_weights_equal_loops(batch, mode) -> None:
    masks, _ = batch
    for each in (mode, "token_sum", "sequence_mean_token_sum_norm"):
        weights = token_weights(each, mask_of(masks), offsets_of(masks), 7.0, dtype=torch.float64)
        expected = flat(oracle.token_weights(each, masks, 7.0)).double()
        torch.testing.assert_close(weights, expected, rtol=1e-12, atol=0)


groups_of_scores = st.lists(st.tuples(numbers, st.integers(0, 3), st.integers(1, 9)), min_size=1, max_size=9)


@CHECKS
@given(groups_of_scores)
def test_group_advantages_equal_loops(rows) -> None:
    scores, groups, lengths = map(list, zip(*rows, strict=True))
    tensors = torch.tensor(scores, dtype=torch.float64), torch.tensor(groups)
    for kind, actual in (
        ("grpo", grpo(*tensors)),
        ("dr_grpo", dr_grpo(*tensors)),
        ("rloo", rloo(*tensors)),
        ("opo", opo(*tensors, torch.tensor(lengths))),
    ):
        expected = torch.tensor(oracle.group_advantage(kind, scores, groups, lengths), dtype=torch.float64)
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


def test_equal_scores_give_exactly_nothing() -> None:
    # The mean of ten times 0.1 is not 0.1: divided by an epsilon, the rounding would become an advantage.
    scores, groups = torch.full((10,), 0.1, dtype=torch.float64), torch.zeros(10)
    for advantages in (grpo(scores, groups), dr_grpo(scores, groups), rloo(scores, groups)):
        assert not advantages.any()
    assert not remax(scores, scores).any()


def test_missing_eos_and_overlong() -> None:
    scores = penalise_missing_eos(torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 0.5)
    assert scores.tolist() == [1.0, 0.5]
    penalty = overlong_penalty(torch.tensor([10.0, 48.0, 56.0, 64.0, 99.0]), 64, 16)
    assert penalty.tolist() == [0.0, 0.0, -0.5, -1.0, -1.0]


@CHECKS
@given(st.lists(st.lists(numbers, max_size=5), max_size=6))
def test_running_moments_equal_those_of_all_values(batches) -> None:
    moments = RunningMoments()
    for batch in batches:
        moments = moments.update(torch.tensor([*batch, math.nan], dtype=torch.float64))
    every = [v for batch in batches for v in batch]
    assert moments.count == len(every)
    if len(every) > 1:
        mean = sum(every) / len(every)
        squares = sum((v - mean) ** 2 for v in every)
        assert moments.mean == pytest.approx(mean, abs=1e-9)
        assert moments.squares == pytest.approx(squares, abs=1e-7)
    assert RunningMoments(**vars(moments)) == moments
    assert moments.normalise(torch.tensor([1.0])).isfinite().all()


def test_fresh_moments_change_nothing() -> None:
    scores = torch.tensor([2.0, -1.0])
    assert torch.equal(RunningMoments().normalise(scores), scores)
    assert RunningMoments().update(torch.tensor([3.0, 3.0])).normalise(scores, shift_mean=False).equal(scores)
    # Nor does what is no more than rounding.
    nearly = torch.tensor([0.0, 1e-45], dtype=torch.float64)
    assert RunningMoments().update(nearly).normalise(scores, shift_mean=False).equal(scores)


@CHECKS
@given(ragged(2))
def test_without_lambda_the_combined_advantage_is_the_rewards_own(batch) -> None:
    _, (reward, cost) = batch
    assert torch.equal(combined_advantages(flat(reward), flat(cost), 0.0), flat(reward))


def test_lambda_rises_above_the_limit_falls_below_and_keeps_its_bound() -> None:
    start = LagrangeMultiplier(1.0, 0.1, cost_limit=0.0, maximum=1.05)
    assert start.update(1.0).value == pytest.approx(1.05)
    assert start.update(-1.0).value == pytest.approx(math.exp(-0.1))
    assert LagrangeMultiplier(0.0, 0.1, 0.0).update(5.0).value == 0
    with pytest.raises(ValueError, match="negative"):
        LagrangeMultiplier(-1.0, 0.1, 0.0)


@CHECKS
@given(ragged(2))
def test_importance_weights_equal_loops(batch) -> None:
    masks, (old, behaviour) = batch
    mask, offsets = mask_of(masks), offsets_of(masks)
    noise = torch.where(mask, 0.0, torch.nan)

    def weights(**settings) -> list[float]:
        correction = OffPolicyCorrection(low=0.5, high=2.0, **settings)
        found, diagnostics = correction(flat(old) + noise, flat(behaviour) + noise, mask, offsets)
        assert all(value.isfinite() for value in diagnostics.values())
        return found.tolist()

    expected: dict[str, list[float]] = {"tis": [], "icepop": [], "sequence": [], "mean": [], "every": []}
    for row_old, row_behaviour, row_mask in zip(old, behaviour, masks, strict=True):
        logs = [a - b for a, b in zip(row_old, row_behaviour, strict=True)]
        own = [x for x, counts in zip(logs, row_mask, strict=True) if counts]
        product = math.exp(oracle.clamp(sum(own), -20, 20))
        geometric = math.exp(sum(own) / max(len(own), 1))
        for x, counts in zip(logs, row_mask, strict=True):
            u = math.exp(x) if counts else 0.0
            expected["tis"].append(oracle.clamp(u, 0.5, 2.0) * counts)
            expected["icepop"].append(u if 0.5 <= u <= 2.0 else 0.0)
            expected["sequence"].append(oracle.clamp(product, 0.5, 2.0) * counts)
            expected["mean"].append(u if 0.5 <= geometric <= 2.0 else 0.0)
            expected["every"].append(float(counts and all(0.5 <= math.exp(y) <= 2.0 for y in own)))
    assert weights() == pytest.approx(expected["tis"])
    assert weights(beyond="mask") == pytest.approx(expected["icepop"])
    assert weights(level="sequence") == pytest.approx(expected["sequence"])
    assert weights(level="mean", beyond="mask", kept="token_ratio") == pytest.approx(expected["mean"])
    assert weights(level="every", beyond="mask", kept="one") == pytest.approx(expected["every"])


def test_effective_sample_size_is_whole_on_policy() -> None:
    logprobs, mask, offsets = -torch.rand(6), torch.ones(6).bool(), torch.tensor([0, 4, 6])
    weights, diagnostics = OffPolicyCorrection()(logprobs, logprobs, mask, offsets)
    assert torch.equal(weights, torch.ones(6))
    assert diagnostics["sampling/effective_sample_size"] == pytest.approx(1)
    assert diagnostics["sampling/mismatch_kl_k3"] == 0


@pytest.mark.parametrize("settings", [{"low": 3.0}, {"level": "every"}, {"kept": "one"}, {"low": -1.0}])
def test_impossible_corrections_are_refused(settings) -> None:
    with pytest.raises(ValueError, match=r"low|every|kept"):
        OffPolicyCorrection(**settings)


@CHECKS
@given(ragged(1))
def test_segments_equal_loops(batch) -> None:
    masks, (values,) = batch
    rows, mask = row_index(offsets_of(masks)), mask_of(masks)
    assert rows.tolist() == [r for r, row in enumerate(masks) for _ in row]
    starts = offsets_of(masks).tolist()
    last = [max((starts[r] + t for t, own in enumerate(row) if own), default=-1) for r, row in enumerate(masks)]
    assert last_of_rows(mask, rows, len(masks)).tolist() == last
    sums = [sum(row) for row in values for _ in row]
    torch.testing.assert_close(token_row_sums(flat(values).double(), rows), torch.tensor(sums, dtype=torch.float64))

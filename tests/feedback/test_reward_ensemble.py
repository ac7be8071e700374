"""Reward predictors: what they learn, what they ask, and that nothing depends on how they are batched."""

import numpy as np
import pytest
import torch

from rlhf_ray.feedback.clips.clips import Clips, Comparisons
from rlhf_ray.feedback.clips.fitting import EnsembleFitter, FitSettings, RewardEnsemble, choose_pairs
from tests.feedback.clip_cases import clips, linear_comparisons


def _fitter(seed: int = 0) -> EnsembleFitter:
    return EnsembleFitter(RewardEnsemble(3, 3, seed), FitSettings(), seed)


def test_members_side_by_side_equal_members_alone() -> None:
    ensemble = RewardEnsemble(3, 5, seed=1)
    inputs = torch.randn(7, 5)
    together = ensemble(inputs)
    for member in range(3):
        hidden = inputs
        for layer in range(3):
            hidden = hidden @ ensemble.weights[layer][member] + ensemble.biases[layer][member]
            hidden = torch.nn.functional.leaky_relu(hidden, 0.01) if layer < 2 else hidden
        torch.testing.assert_close(together[member], hidden[:, 0])
    clips_of = inputs[:6].view(2, 3, 5)
    torch.testing.assert_close(ensemble.sums(clips_of), together[:, :6].view(3, 2, 3).sum(2))
    assert (together[0] - together[1]).abs().max() > 0.01


def test_each_member_counts_by_its_own_zero_and_unit() -> None:
    ensemble = RewardEnsemble(3, 5, seed=1)
    inputs = torch.randn(50, 5)
    with torch.no_grad():
        ensemble.weights[2][1] *= 100
        ensemble.biases[2][0] += 7
    ensemble.standardise(inputs)
    own = ensemble(inputs).detach()
    expected = ((own - own.mean(1, keepdim=True)) / own.std(1, correction=0, keepdim=True)).mean(0)
    torch.testing.assert_close(ensemble.reward(inputs), expected)
    assert float(ensemble.reward(inputs).mean()) == pytest.approx(0, abs=1e-4)


def test_the_reward_of_steps_is_learned_from_choices_between_clips() -> None:
    fitter = _fitter()
    metrics = fitter.fit(linear_comparisons(300), steps=200, turn=0)
    assert metrics["eval_accuracy"] > 0.85
    assert metrics["loss"] < 0.5
    unseen = linear_comparisons(200, seed=9)
    steps = torch.from_numpy(unseen.left.inputs).flatten(0, 1)
    learned = fitter.ensemble.reward(steps)
    assert float(torch.corrcoef(torch.stack([learned, steps[:, 0]]))[0, 1]) > 0.85
    wrong = _fitter()
    comparisons = linear_comparisons(300)
    upside_down = Comparisons(comparisons.numbers, comparisons.left, comparisons.right, 1 - comparisons.left_share)
    wrong.fit(upside_down, steps=200, turn=0)
    assert float(torch.corrcoef(torch.stack([wrong.ensemble.reward(steps), steps[:, 0]]))[0, 1]) < -0.85


def test_a_fit_depends_on_seed_and_turn_alone() -> None:
    same, again, other = _fitter(), _fitter(), _fitter()
    for fitter, turn in ((same, 1), (again, 1), (other, 2)):
        fitter.fit(linear_comparisons(40), steps=5, turn=turn)
    inputs = torch.randn(9, 3)
    assert torch.equal(same.ensemble(inputs), again.ensemble(inputs))
    assert not torch.equal(same.ensemble(inputs), other.ensemble(inputs))


def test_a_comparison_counts_the_same_whatever_comes_beside_it() -> None:
    fitter = _fitter()
    many, few = linear_comparisons(2000), linear_comparisons(30)
    counts = fitter._counts(many)
    np.testing.assert_array_equal(fitter._counts(few), counts[:, :30])
    # One in e is held out by each member, and each by others.
    assert (counts == 0).mean() == pytest.approx(1 / np.e, abs=0.02)
    assert counts.mean() == pytest.approx(1, abs=0.05)
    assert not (counts[0] == counts[1]).all()


def test_one_comparison_is_enough_to_begin() -> None:
    fitter = _fitter()
    fitter.fit(linear_comparisons(1), steps=3, turn=0)
    assert torch.isfinite(fitter.ensemble(torch.randn(4, 3))).all()
    assert torch.isfinite(fitter.l2).all()


def test_who_learned_from_nothing_or_from_all_keeps_its_l2() -> None:
    """There is no ratio of losses to go by; and who learned from nothing has no loss of 0."""
    comparisons, seeds = linear_comparisons(2), range(200)
    drawn = {seed: _fitter(seed)._counts(comparisons) for seed in seeds}
    seed = next(seed for seed in seeds if drawn[seed].any(1).tolist() == [False, True, True] and drawn[seed][1].all())
    fitter = _fitter(seed)
    before = fitter.l2.tolist()
    metrics = fitter.fit(comparisons, steps=1, turn=0)
    assert fitter.l2.tolist()[:2] == before[:2]
    left, right = (torch.from_numpy(clips.inputs) for clips in (comparisons.left, comparisons.right))
    weight = torch.from_numpy(drawn[seed] / drawn[seed].sum(1, keepdims=True).clip(1))
    losses = [float(loss) for loss, _ in fitter._losses(left, right, torch.tensor(comparisons.left_share), weight)]
    assert losses[0] == 0
    assert metrics["loss"] == pytest.approx((losses[1] + losses[2]) / 2)


def test_what_members_disagree_on_is_asked() -> None:
    ensemble = RewardEnsemble(2, 3, seed=0)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.zero_()
        # Both members like the first feature; one likes the action too.
        for member, action in ((0, 0.0), (1, 5.0)):
            ensemble.weights[0][member, 0, 0] = ensemble.weights[0][member, 2, 1] = 1.0
            ensemble.weights[1][member, 0, 0] = ensemble.weights[1][member, 1, 1] = 1.0
            ensemble.weights[2][member, 0, 0], ensemble.weights[2][member, 1, 0] = 1.0, action
    dice = np.random.default_rng(0)
    observations, actions = dice.uniform(0, 1, (40, 4, 2)), np.zeros((40, 4, 1))
    actions[:5] = 1.0
    found = Clips(observations.astype(np.float32), actions.astype(np.float32), np.zeros(40, np.float32))
    pairs = choose_pairs(found, 8, ensemble, 0.1, [0])
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == 8
    disputed = [(left < 5) != (right < 5) for left, right in pairs]
    at_random = [(left < 5) != (right < 5) for left, right in choose_pairs(found, 80, None, 0.1, [0])]
    assert np.mean(disputed) > 0.9 > 0.5 > np.mean(at_random)


@pytest.mark.parametrize(("count", "expected"), [(1, 1), (50, 3)])
def test_no_pair_is_asked_twice_and_no_clip_against_itself(count: int, expected: int) -> None:
    pairs = choose_pairs(clips(3), count, None, 0.1, [1])
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == expected
    assert all(left != right for left, right in pairs)

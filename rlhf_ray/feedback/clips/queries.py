"""Which clips to compare next: the pairs on which the members of an ensemble disagree most."""

import numpy as np
import torch

from rlhf_ray.algorithms.clip_preferences import choice_variance
from rlhf_ray.feedback.clips.clips import Clips
from rlhf_ray.feedback.clips.reward_ensemble import RewardEnsemble

CANDIDATES = 10
"""Pairs that are looked at for each one that is asked."""


def choose_pairs(
    clips: Clips, count: int, ensemble: RewardEnsemble | None, error_floor: float, seed: list[int]
) -> list[tuple[int, int]]:
    """Pairs of different clips to be compared, as places in `clips`; fewer where there are not so many pairs.

    Args:
        clips: to choose from, at least two.
        count: how many pairs.
        ensemble: whose disagreement decides (Christiano et al. 2017, section 2.2.4); None: random pairs.
        error_floor: of the ensemble's loss.
        seed: of the candidates.
    """
    dice = np.random.default_rng(seed)
    wanted = count if ensemble is None else count * CANDIDATES
    first = dice.integers(len(clips), size=2 * wanted)
    second = (first + dice.integers(1, len(clips), size=2 * wanted)) % len(clips)
    # Sides as they were drawn; the same two clips are not asked twice at once.
    pairs = list({frozenset(pair): pair for pair in zip(first.tolist(), second.tolist(), strict=True)}.values())
    pairs = pairs[:wanted]
    if ensemble is None or len(pairs) <= count:
        return pairs[:count]
    with torch.no_grad():
        sums = ensemble.sums(torch.from_numpy(clips.inputs))
    left, right = (sums[:, [pair[side] for pair in pairs]] for side in (0, 1))
    order = choice_variance(left - right, error_floor).argsort(descending=True, stable=True)
    return [pairs[place] for place in order[:count].tolist()]

"""Clips that tests share: numbers of which each is known by its place."""

import numpy as np

from rlhf_ray.feedback.clips.clips import Clips, Comparisons


def clips(count: int, frames: int = 4, first: int = 0) -> Clips:
    """Clips whose true return is their number."""
    numbers = np.arange(first, first + count, dtype=np.float32)
    observations = numbers[:, None, None] + np.linspace(0, 0.3, frames * 2, dtype=np.float32).reshape(frames, 2)
    actions = np.broadcast_to(-numbers[:, None, None], (count, frames, 1)).astype(np.float32)
    return Clips(observations.astype(np.float32), actions, numbers)


def linear_comparisons(pairs: int, seed: int = 0, frames: int = 6) -> Comparisons:
    """Random clips; better is the one whose first feature is larger in sum, and one pair in ten is equal."""
    dice = np.random.default_rng(seed)

    def side() -> Clips:
        observations = dice.normal(size=(pairs, frames, 2)).astype(np.float32)
        actions = dice.normal(size=(pairs, frames, 1)).astype(np.float32)
        return Clips(observations, actions, observations[..., 0].sum(1))

    left, right = side(), side()
    share = (left.true_returns > right.true_returns).astype(np.float32)
    share[::10] = 0.5
    return Comparisons(np.arange(pairs), left, right, share)

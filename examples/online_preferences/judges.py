"""Who compares clips: an oracle that knows the true reward, or people at the page."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from examples.online_preferences.saving import Tensors, clips_of, named, tensors_of, under
from rlhf_ray.feedback.clips.clips import LEFT_SHARE, Clips, Comparisons
from rlhf_ray.feedback.clips.store import ClipStore

Pair = tuple[Clips, Clips]
"""A left and a right clip."""


class JudgeOfClips(Protocol):
    """Takes pairs, and gives back those that it has judged."""

    def asked(self) -> int:
        """Count the pairs that it was asked about, ever."""
        ...

    def waiting(self) -> int:
        """Count those of them that it has not judged yet."""
        ...

    def ask(self, pairs: Sequence[Pair]) -> None:
        """Ask about some more."""
        ...

    def judged(self) -> Comparisons | None:
        """Return all that was judged and decided; None while there is nothing."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Return what must be saved with the run."""
        ...

    def load(self, tensors: Tensors) -> None:
        """Load what `state` returned."""
        ...


class Oracle:
    """Prefers the clip with the larger true return, and answers at once."""

    def __init__(self) -> None:
        self._left: list[Clips] = []
        self._right: list[Clips] = []

    def asked(self) -> int:
        """See `JudgeOfClips`."""
        return sum(map(len, self._left))

    def waiting(self) -> int:
        """Return 0: an oracle lets nobody wait."""
        return 0

    def ask(self, pairs: Sequence[Pair]) -> None:
        """See `JudgeOfClips`."""
        self._left += [left for left, _ in pairs]
        self._right += [right for _, right in pairs]

    def judged(self) -> Comparisons | None:
        """See `JudgeOfClips`."""
        if not self._left:
            return None
        self._left, self._right = [Clips.joined(self._left)], [Clips.joined(self._right)]
        (left,), (right,) = self._left, self._right
        share = (1 + np.sign(left.true_returns - right.true_returns)) / 2
        return Comparisons(np.arange(len(left)), left, right, share.astype(np.float32))

    def state(self) -> dict[str, torch.Tensor]:
        """Return both sides of all pairs."""
        found = self.judged()
        if found is None:
            return {}
        sides = {"left": found.left, "right": found.right}
        return {
            name: tensor for side, clips in sides.items() for name, tensor in named(side, tensors_of(clips)).items()
        }

    def load(self, tensors: Tensors) -> None:
        """See `JudgeOfClips`."""
        self._left, self._right = ([clips_of(under(side, tensors))] for side in ("left", "right"))


class People:
    """Annotators at the page. The store is the truth: a choice that is taken back counts no more at the next round."""

    def __init__(self, store: ClipStore) -> None:
        self._store = store
        self._numbers = max(store.numbers(), default=-1)

    def asked(self) -> int:
        """See `JudgeOfClips`."""
        return len(self._store.numbers())

    def waiting(self) -> int:
        """See `JudgeOfClips`."""
        return self._store.waiting()

    def ask(self, pairs: Sequence[Pair]) -> None:
        """See `JudgeOfClips`."""
        first = self._numbers + 1
        self._store.add((first + place, left, right) for place, (left, right) in enumerate(pairs))
        self._numbers += len(pairs)

    def judged(self) -> Comparisons | None:
        """See `JudgeOfClips`. What nobody could tell teaches nothing."""
        found = [(pair, LEFT_SHARE[choice]) for pair, choice in self._store.chosen() if choice in LEFT_SHARE]
        if not found:
            return None
        return Comparisons(
            np.asarray([pair.number for pair, _ in found]),
            Clips.joined([pair.left for pair, _ in found]),
            Clips.joined([pair.right for pair, _ in found]),
            np.asarray([share for _, share in found], dtype=np.float32),
        )

    def state(self) -> dict[str, torch.Tensor]:
        """Return nothing: it is in the store."""
        return {}

    def load(self, tensors: Tensors) -> None:
        """Keep what people judged after the checkpoint too: their work is not thrown away."""

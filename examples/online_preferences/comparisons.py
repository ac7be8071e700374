"""The role that compares: keeps newer clips, chooses which to show, and gathers what was judged."""

from dataclasses import dataclass

import torch

from examples.online_preferences.judges import JudgeOfClips, Oracle, People
from examples.online_preferences.saving import Saved, Tensors, clips_of, named, tensors_of, under
from rlhf_ray.feedback.clips.clips import Clips, Comparisons
from rlhf_ray.feedback.clips.fitting import FitSettings, RewardEnsemble, choose_pairs
from rlhf_ray.feedback.clips.store import ClipStore
from rlhf_ray.feedback.labelling.database import Database

POOL = 400
"""Clips to choose from: those of the last rounds, so that questions are about what the policy does now."""


@dataclass(frozen=True)
class Judged:
    """Comparisons that were asked for and judged so far."""

    comparisons: Comparisons | None
    """All that are decided; None while there is none."""
    asked: int
    waiting: int


class ComparingRole(Saved):
    """One judge with the clips that it may be asked about.

    Args:
        seed: of the queries.
        store: where people judge; None: an oracle does.
        run: name of the run in the store.
    """

    def __init__(self, seed: int, store: str | None = None, run: str = "") -> None:
        self._seed = seed
        self._judge: JudgeOfClips = Oracle() if store is None else People(ClipStore(Database(store), run))
        self._pool: Clips | None = None

    def ask(self, clips: Clips, ensemble: RewardEnsemble | None, due: int, number: int) -> Judged:
        """Take new clips in, ask until `due` pairs were asked in all, and gather what is judged.

        Args:
            clips: of the last round.
            ensemble: whose disagreement says what to ask; None: random pairs.
            due: pairs that the run may have asked about by now.
            number: of the round, by which candidates are drawn.
        """
        pool = clips if self._pool is None else Clips.joined([self._pool, clips])
        self._pool = pool.take(range(max(0, len(pool) - POOL), len(pool)))
        return self._ask(self._pool, ensemble, due, [self._seed, number])

    def ask_more(self, ensemble: RewardEnsemble | None, due: int, number: int) -> Judged:
        """Ask again in the same round, about other pairs of the clips that there are; see `ask`."""
        assert self._pool is not None
        return self._ask(self._pool, ensemble, due, [self._seed, number, self._judge.asked()])

    def _ask(self, pool: Clips, ensemble: RewardEnsemble | None, due: int, seed: list[int]) -> Judged:
        wanted = due - self._judge.asked()
        if wanted > 0:
            pairs = choose_pairs(pool, wanted, ensemble, FitSettings().error_floor, seed)
            self._judge.ask([(pool.take([left]), pool.take([right])) for left, right in pairs])
        return self.judged()

    def judged(self) -> Judged:
        """Return what is judged by now."""
        # Counted first: where nothing waits then, all that was chosen is among what is read after it.
        waiting = self._judge.waiting()
        return Judged(self._judge.judged(), self._judge.asked(), waiting)

    def state(self) -> dict[str, torch.Tensor]:
        """See `Saved`."""
        pool = {} if self._pool is None else named("pool", tensors_of(self._pool))
        return pool | named("judge", self._judge.state())

    def load(self, tensors: Tensors) -> None:
        """See `Saved`."""
        self._pool = clips_of(under("pool", tensors))
        self._judge.load(under("judge", tensors))

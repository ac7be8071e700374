"""Groups of a step whose rewards differ; further prompts are answered in the place of the others (DAPO)."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from rlhf_ray.jobs.ppo.scoring import put_rewards, rewards_of
from rlhf_ray.jobs.ppo.turns import REWARDS, DeviceTurns
from rlhf_ray.roles.scorer import PendingRewards, RewardSources
from rlhf_ray.rollout.interfaces import Group, Groups

Start = Callable[[int, int], Groups]
"""Sends the next prompts to the engines: the number of the round, from 0, and how many prompts."""


class InformativeGroups:
    """Iterator over the kept groups of a step, in the order in which they come (Yu et al. 2025).

    A group is dropped if all its rewards are equal: estimators that compare groups learn nothing from it. Once all
    prompts of a round have been answered, as many further ones are sent out as groups are missing, until none is, or
    `most` prompts have been answered. The rewards of kept groups stand in their samples.

    Where not one group was kept, the last dropped one stands in, so that the step takes place.
    """

    def __init__(
        self,
        start: Start,
        rewards: RewardSources,
        *,
        wanted: int,
        most: int,
        greedy_last: bool = False,
        turns: DeviceTurns | None = None,
    ) -> None:
        """Start the first round, of `wanted` prompts.

        Args:
            start: sends prompts; the engines get the devices by it.
            rewards: judges groups.
            wanted: groups of the step.
            most: prompts of the step.
            greedy_last: whether the last sample of a group is a greedy one, which is not compared.
            turns: of roles that share devices: where rewards do, a round is scored once all of it has come.
        """
        self._start, self._rewards = start, rewards
        self._wanted, self._most = wanted, most
        self._drawn = -1 if greedy_last else None
        self._turns = turns or DeviceTurns()
        self.dropped: list[Group] = []
        """Answered, and not kept."""
        self.kept = 0
        self.asked = wanted
        """Prompts that were sent out."""
        self._stands_in = False
        self._running = start(0, wanted)
        self._early: list[tuple[Group, PendingRewards]] = []
        """Groups of the first round whose rewards were asked for before the batch is collected."""

    def __iter__(self) -> Iterator[Group]:
        number = 0
        while True:
            for group in self._scored():
                if self._informative(group):
                    self.kept += 1
                    yield group
                else:
                    self.dropped.append(group)
            missing = min(self._wanted - self.kept, self._most - self.asked)
            if missing <= 0:
                break
            number += 1
            self.asked += missing
            self._running = self._start(number, missing)
        if not self.kept and self.dropped and not self._stands_in:
            self._stands_in = True
            yield self.dropped.pop()

    def poll(self) -> Group | None:
        """Ask for the rewards of a group that has come; which groups are kept shows once the batch is collected."""
        takes_turns = REWARDS in self._turns.roles
        while not takes_turns and (group := self._running.poll()) is not None:
            self._early.append((group, self._rewards.submit(group)))
        return None

    def close(self) -> None:
        """End what still runs."""
        self._running.close()

    def metrics(self) -> dict[str, float]:
        """Count the prompts that were answered; return the share whose rewards were all equal."""
        return {"filter/prompts": float(self.asked), "frac_reward_zero_std": 1 - self.kept / max(self.asked, 1)}

    def _scored(self) -> Iterator[Group]:
        """Yield groups of the running round with rewards; each is scored while the next ones are written."""
        groups: Sequence[Group] | Groups = self._running
        takes_turns = REWARDS in self._turns.roles
        if takes_turns:
            groups = list(self._running)
            self._turns.give(REWARDS)
        pending = deque(self._early)
        self._early.clear()
        for group in groups:
            pending.append((group, self._rewards.submit(group)))
            if len(pending) > 1 and not takes_turns:
                yield self._with_rewards(*pending.popleft())
        for one in pending:
            yield self._with_rewards(*one)

    def _with_rewards(self, group: Group, pending: PendingRewards) -> Group:
        put_rewards(group, pending.result())
        return group

    def _informative(self, group: Group) -> bool:
        scores = self._rewards.combine(rewards_of(group[: self._drawn]))
        return len({score for score in scores if math.isfinite(score)}) > 1

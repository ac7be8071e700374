"""Groups of a step whose rewards differ; further prompts are answered in the place of the others (DAPO)."""

import math
from collections import deque
from collections.abc import Callable, Iterator

from rlhf_ray.jobs.ppo.scoring import put_rewards, rewards_of
from rlhf_ray.jobs.ppo.turns import REWARDS, DeviceTurns
from rlhf_ray.roles.scorer import PendingRewards, RewardSources
from rlhf_ray.rollout.interfaces import Group, Groups

Start = Callable[[int, int], Groups]
"""Sends the next prompts to the engines: how often it was called before, and how many prompts."""


class InformativeGroups:
    """Iterator over the kept groups of a step, in the order in which they come (Yu et al. 2025).

    A group is dropped if all its rewards are equal: estimators that compare groups learn nothing from it. Another
    prompt is sent out in its place, until no group is missing or `most` prompts have been sent: one by one, or as many
    as are missing once all others are answered. Those are the same prompts, since each dropped group stands for the
    next one.
    The rewards of kept groups stand in their samples.

    Where not one group was kept, the last dropped one stands in, so that the step takes place.
    """

    def __init__(
        self,
        start: Start,
        rewards: RewardSources,
        *,
        wanted: int,
        most: int,
        one_by_one: bool,
        greedy_last: bool = False,
        turns: DeviceTurns | None = None,
    ) -> None:
        """Send out the first `wanted` prompts.

        Args:
            start: sends prompts; the engines get the devices by it.
            rewards: judges groups.
            wanted: groups of the step.
            most: prompts of the step.
            one_by_one: send another prompt as soon as a group is dropped, so that engines need not wait for the longest
                answer. Not where rewards take turns with engines, or requests have to go into an engine together.
            greedy_last: whether the last sample of a group is a greedy one, which is not compared.
            turns: of roles that share devices: where rewards do, groups are scored once all have come.
        """
        self._start, self._rewards = start, rewards
        self._wanted, self._most = wanted, most
        self._drawn = -1 if greedy_last else None
        self._turns = turns or DeviceTurns()
        self._takes_turns = REWARDS in self._turns.roles
        self._one_by_one = one_by_one and not self._takes_turns
        self.dropped: list[Group] = []
        """Answered, and not kept."""
        self.kept = 0
        self.asked = wanted
        """Prompts that were sent out."""
        self._stands_in = False
        self._running = deque([start(0, wanted)])
        self._calls = 1
        """Of `start`."""
        self._early: list[tuple[Group, PendingRewards]] = []
        """Groups whose rewards were asked for before the batch is collected."""

    def __iter__(self) -> Iterator[Group]:
        while self._running:
            for group in self._scored():
                if self._informative(group):
                    self.kept += 1
                    yield group
                    continue
                self.dropped.append(group)
                if self._one_by_one:
                    self._send(self.asked - self.kept - len(self.dropped))
            self._send(0)
        if not self.kept and self.dropped and not self._stands_in:
            self._stands_in = True
            yield self.dropped.pop()

    def poll(self) -> Group | None:
        """Ask for the rewards of a group that has come; which groups are kept shows once the batch is collected."""
        if not self._takes_turns:
            self._early += self._come()
        return None

    def close(self) -> None:
        """End what still runs."""
        for groups in self._running:
            groups.close()

    def metrics(self) -> dict[str, float]:
        """Count the prompts that were answered; return the share whose rewards were all equal."""
        return {"filter/prompts": float(self.asked), "frac_reward_zero_std": 1 - self.kept / max(self.asked, 1)}

    def _send(self, under_way: int) -> None:
        """Send out as many further prompts as groups are missing, beside those of which nothing is known yet."""
        missing = min(self._wanted - self.kept - under_way, self._most - self.asked)
        if missing > 0:
            self.asked += missing
            self._running.append(self._start(self._calls, missing))
            self._calls += 1

    def _scored(self) -> Iterator[Group]:
        """Yield all groups under way with rewards; each is scored while others are written."""
        if self._takes_turns:
            whole = list(self._running.popleft())
            self._turns.give(REWARDS)
            for one in [(group, self._rewards.submit(group)) for group in whole]:
                yield self._with_rewards(*one)
            return
        pending = deque(self._early)
        self._early.clear()
        while self._running:
            for group in self._running[0]:
                pending.append((group, self._rewards.submit(group)))
                pending += self._come()
                while len(pending) > 1:
                    yield self._with_rewards(*pending.popleft())
            self._running.popleft()
            while pending and not self._running:
                yield self._with_rewards(*pending.popleft())

    def _come(self) -> Iterator[tuple[Group, PendingRewards]]:
        """Ask for the rewards of the groups that have come."""
        for groups in self._running:
            while (group := groups.poll()) is not None:
                yield group, self._rewards.submit(group)

    def _with_rewards(self, group: Group, pending: PendingRewards) -> Group:
        put_rewards(group, pending.result())
        return group

    def _informative(self, group: Group) -> bool:
        scores = self._rewards.combine(rewards_of(group[: self._drawn]))
        return len({score for score in scores if math.isfinite(score)}) > 1

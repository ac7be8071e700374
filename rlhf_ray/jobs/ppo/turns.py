"""Whose turn it is on devices that roles share."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlhf_ray.cluster.placement import rounds
from rlhf_ray.runs.engines import SharedEngines

POLICY, ROLLOUT, REWARDS, REFERENCE = "policy", "rollout", "rewards", "reference"


class Sleeper(Protocol):
    """A role that can give its devices away for a while."""

    def wake(self) -> None:
        """Take the devices again."""
        ...

    def sleep(self) -> None:
        """Free the devices."""
        ...


@dataclass
class DeviceTurns:
    """Turns on shared devices: for those who need some next, others on these devices sleep, then they wake.

    Nobody sleeps for a role on other devices. Where no devices are shared nothing happens.
    """

    roles: Mapping[str, Sleeper] = field(default_factory=dict)
    """Roles that share devices."""
    shares: Mapping[str, Collection[str]] = field(default_factory=dict)
    """By role, the others that are on its devices."""
    asleep: set[str] = field(default_factory=set)
    """Roles that have given their devices away; at first none has, unless said."""

    def give(self, *names: str) -> None:
        """Let these roles work, on all that they hold."""
        self.clear_for(names)
        self._wake(names)

    def give_for_sync(self) -> None:
        """Let the policy and the engines' weights have the devices; the engines' cache follows by `give`."""
        self.clear_for((POLICY, ROLLOUT))
        if self.engines is not None:
            # The cache leaves before the policy comes.
            self.engines.sleep_but_weights()
            self.engines.wake_weights()
            self.asleep.discard(ROLLOUT)
        self._wake((POLICY,))

    @property
    def engines(self) -> SharedEngines | None:
        """Return the rollout, whose weights wake before its cache; None where it shares no devices."""
        role = self.roles.get(ROLLOUT)
        return role if isinstance(role, SharedEngines) else None

    def expect_sync(self, expected: bool = True) -> None:
        """Note whether the engines get all their weights anew before they answer again: then nobody keeps the old."""
        if self.engines is not None:
            self.engines.weights_follow = expected

    def clear_for(self, names: Collection[str]) -> None:
        """Let all sleep that are on devices of these roles."""
        for name, role in self.roles.items():
            if name not in names and name not in self.asleep and self._is_in_the_way(name, names):
                role.sleep()
                self.asleep.add(name)

    def rounds(self, names: Sequence[str]) -> list[list[str]]:
        """Divide roles that a phase needs into rounds, see `cluster.placement.rounds`."""
        return rounds(names, self.shares)

    def _wake(self, names: Collection[str]) -> None:
        for name, role in self.roles.items():
            # Of the engines part may be awake already.
            if name in names and (name in self.asleep or name == ROLLOUT):
                role.wake()
                self.asleep.discard(name)

    def _is_in_the_way(self, name: str, names: Collection[str]) -> bool:
        return not set(self.shares.get(name, ())).isdisjoint(names)

"""What the policy learned on its way to the engines: one version at a time, verified on arrival."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray

from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.cluster.outcome import Caller, wait_together
from rlhf_ray.config.model import Dtype
from rlhf_ray.roles.trainer import TrainerGroup
from rlhf_ray.transfer.verification import TOLERANCE, verify_sync

OWN_ERROR_SECONDS = 10.0
"""The driver waits this much longer than the members of a transfer, whose own errors name the cause."""

BREAK_OFF_SECONDS = 30.0
"""Engines that have not come out of a broken transfer by then are started anew."""


class PolicySync(ABC):
    """Gives engines what the policy learned, then compares what both sides compute from it.

    Args:
        policy: the trained policy.
        engines: the rollout engines, started.
        dtype: type of the engines.
        tolerance: largest difference of log-probabilities on the probes; None for the type's own.
        probes: token sequences that both sides score after each sync.
    """

    def __init__(
        self,
        policy: TrainerGroup,
        engines: ActorGroup,
        *,
        dtype: Dtype,
        tolerance: float | None,
        probes: Sequence[np.ndarray],
    ) -> None:
        self._policy = policy.actors
        self._engines = engines
        self._dtype: Dtype = dtype
        self._tolerance = TOLERANCE[dtype] if tolerance is None else tolerance
        self._probes = probes
        self._seconds = engines.cluster.deadlines.transfer_seconds
        self.prepare()

    def prepare(self) -> None:
        """Begin with the policy's present processes, which may be new ones; no engine has weights from them yet."""
        self._receiving: dict[int, ray.ObjectRef] = {}
        self.stuck: list[int] = []
        """Engines that did not come out of the last transfer, which broke off."""
        self.version = -1
        """Of the newest weights that all engines got; -1 before the first sync."""

    def __call__(self, version: int, members: list[int]) -> dict[str, float]:
        """Give the present weights to engines as `version`.

        Args:
            version: number of the weights.
            members: engines by number; others are left as they are.

        Returns:
            `sync/...`: seconds of gather, wire, load, pause, verify and all together, the largest difference of
            log-probabilities between trainer and engines on the probes and what is allowed, and the version.

        Raises:
            RoleDied, RoleRaised, DeadlineExceeded: the transfer broke off; the next one begins anew.
            SyncMismatch: an engine does not compute with the new weights.
        """
        started = time.perf_counter()
        self._receiving, self.stuck = {}, []
        try:
            timings = self._give(version, members)
            arrived = time.perf_counter()
            difference = self._verify(version, members)
        except BaseException:
            self._break_off()
            raise
        self.version = version
        ended = time.perf_counter()
        seconds = timings | {"verify": ended - arrived, "total": ended - started}
        return {f"sync/{part}": value for part, value in seconds.items()} | {
            "sync/logprob_diff": difference,
            "sync/tolerance": self._tolerance,
            "sync/version": float(version),
        }

    def catch_up(self, engine: int) -> None:
        """Give the weights of the others to an engine that came back; only while the policy does not learn."""
        self(self.version, [engine])

    @abstractmethod
    def _give(self, version: int, members: list[int]) -> dict[str, float]:
        """Bring the weights to engines; returns seconds of gather, wire, load and pause."""

    def _break_off(self) -> None:
        """After a sync that failed, note the engines that are still in it."""
        if self._receiving:
            refs = list(self._receiving.values())
            ended, _ = ray.wait(refs, num_returns=len(refs), timeout=BREAK_OFF_SECONDS)
            self.stuck = [engine for engine, ref in self._receiving.items() if ref not in ended]

    def _verify(self, version: int, members: list[int]) -> float:
        expecting = self._policy.submit("probe_logprobs", self._probes)
        scoring = [self._engines.submit_one(engine, "score", self._probes) for engine in members]
        expected, scored = self._wait(expecting, members, scoring, "scoring the probes")
        return max(
            verify_sync(
                expected[0], found, dtype=self._dtype, tolerance=self._tolerance, version=version, engine_index=engine
            )
            for engine, found in zip(members, scored, strict=True)
        )

    def _wait(
        self, policy: Sequence[ray.ObjectRef], members: Sequence[int], engines: Sequence[ray.ObjectRef], phase: str
    ) -> tuple[list[Any], list[Any]]:
        """Results of the policy's ranks and of engines; who fails first ends it, for the others wait for that one."""
        calls = [(ref, Caller(self._engines.name, engine)) for ref, engine in zip(engines, members, strict=True)]
        calls += [(ref, Caller(self._policy.name, rank)) for rank, ref in enumerate(policy)]
        # The members' own deadlines are `self._seconds`; their errors say more than ours.
        results = wait_together(calls, phase=phase, seconds=self._seconds + OWN_ERROR_SECONDS)
        return results[len(engines) :], results[: len(engines)]


class AdapterSync(PolicySync):
    """Gives engines the files of the policy's adapter, a hundredth of the weights or less; nobody meets in a group."""

    def _give(self, version: int, members: list[int]) -> dict[str, float]:
        started = time.perf_counter()
        self._wait(self._policy.submit("gather_adapter"), [], [], f"gathering the adapter of version {version}")
        gathered = time.perf_counter()
        # From the first rank's node to the engines', and not through the driver.
        files = self._policy.submit_one(0, "gathered_adapter")
        loading = [self._engines.submit_one(engine, "load_adapter", files, version) for engine in members]
        self._receiving = dict(zip(members, loading, strict=True))
        _, loaded = self._wait([], members, loading, f"transfer of the adapter of version {version}")
        self._receiving = {}
        slowest = max(loaded, key=lambda seconds: sum(seconds.values()))
        wire = time.perf_counter() - gathered - sum(slowest.values())
        return {"gather": gathered - started, "wire": max(0.0, wire), **slowest}

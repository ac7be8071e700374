"""What the policy learned on its way to the engines: one version at a time, verified on arrival."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from rlhf_ray.cluster.endpoint import run_on
from rlhf_ray.cluster.errors import DeadlineExceeded, RoleError
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.cluster.outcome import Caller, wait, wait_together
from rlhf_ray.config.model import Dtype
from rlhf_ray.roles.trainer import TrainerGroup
from rlhf_ray.transfer.group import TransferGroup, Transport
from rlhf_ray.transfer.meeting import call_off, end_transfer
from rlhf_ray.transfer.verification import (
    Probe,
    Tolerance,
    WeightComparison,
    compare_scores,
    sync_timings,
)

OWN_ERROR_SECONDS = 10.0
"""The driver waits this much longer than the members of a transfer, whose own errors name the cause."""

RATED = ("gather", "send", "load", "verify")
"""Parts of a sync whose bytes per second are logged."""

BREAK_OFF_SECONDS = 30.0
"""Engines that have not come out of a broken transfer by then are started anew."""


class PolicySync(ABC):
    """Gives engines what the policy learned, then compares what both sides compute from it.

    Args:
        policy: the trained policy.
        engines: the rollout engines, started.
        dtype: type of the engines.
        tolerance: largest difference of log-probabilities on the probes; None for what rounding explains.
        probes: gives the token sequences that both sides score after each sync, natural texts among them.
        hand_over: gives devices that both sides share to the engines, once the policy has done its part; None: they
            share none.
    """

    def __init__(
        self,
        policy: TrainerGroup,
        engines: ActorGroup,
        *,
        dtype: Dtype,
        tolerance: float | None,
        probes: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
        hand_over: Callable[[], None] | None = None,
    ) -> None:
        self._policy = policy.actors
        self._engines = engines
        self._dtype: Dtype = dtype
        self._tolerance = tolerance
        self._probes = probes
        self._hand_over = hand_over
        self._texts: Sequence[np.ndarray] = ()
        self._seconds = engines.transfer_seconds
        self.prepare()

    def prepare(self) -> None:
        """Begin with the policy's present processes, which may be new ones; no engine has weights from them yet."""
        self._receiving: dict[int, ray.ObjectRef] = {}
        self.stuck: list[int] = []
        """Engines that did not come out of the last transfer, which broke off."""
        self.version = -1
        """Of the policy's weights, which an engine that comes back gets; -1 until engines got weights of it."""

    def learned(self, version: int) -> None:
        """Say that the policy's weights are of a new version, before any engine gets them."""
        if self.version >= 0:
            self.version = version

    def __call__(self, version: int, members: list[int]) -> dict[str, float]:
        """Give the present weights to engines as `version`.

        Args:
            version: number of the weights.
            members: engines by number; others are left as they are.

        Returns:
            `sync/...`: seconds of gather, send, load, pause, verify and all together, and bytes per second of the first
            three and of verify; differences of log-probabilities between trainer and engines on the probes, and what
            is allowed; the version.

        Raises:
            RoleDied, RoleRaised, DeadlineExceeded: the transfer broke off; the next one begins anew.
            SyncMismatch: an engine does not compute with the new weights.
        """
        started = time.perf_counter()
        self._receiving, self.stuck = {}, []
        try:
            timings, size = self._give(version, members)
            arrived = time.perf_counter()
            found = self._verify(version, members)
        except BaseException:
            self._break_off()
            raise
        self.version = version
        ended = time.perf_counter()
        seconds = timings | {"verify": ended - arrived, "total": ended - started}
        rates = {f"bytes_per_second/{part}": size / seconds[part] for part in RATED if seconds[part] > 0}
        logged = seconds | rates | found | {"version": float(version)}
        return {f"sync/{name}": value for name, value in logged.items()}

    def read(self, texts: Sequence[np.ndarray]) -> None:
        """Score these natural texts, token ids, after each sync from now on, beside the random ones."""
        self._texts = texts

    def catch_up(self, engine: int) -> None:
        """Give the policy's weights to an engine that came back; only while the policy does not learn."""
        self(self.version, [engine])

    @abstractmethod
    def _give(self, version: int, members: list[int]) -> tuple[dict[str, float], float]:
        """Bring the weights to engines; returns seconds of gather, send, load and pause, and their bytes."""

    def _break_off(self) -> None:
        """Note, after a sync that failed, the engines that are still in it."""
        if self._receiving:
            refs = list(self._receiving.values())
            ended, _ = ray.wait(refs, num_returns=len(refs), timeout=BREAK_OFF_SECONDS)
            self.stuck = [engine for engine, ref in self._receiving.items() if ref not in ended]

    def _verify(self, version: int, members: list[int]) -> dict[str, float]:
        """Compare what both sides compute, and what they hold."""
        probes = self._probes(self._texts)
        expecting = self._policy.submit("probe", probes)
        if self._hand_over is not None:
            self._wait(expecting, [], [], "scoring the probes")
            self._hand_over()
        scoring = [self._engines.submit_one(engine, "score", probes) for engine in members]
        answers, scored = self._wait(expecting, members, scoring, "scoring the probes")
        probe: Probe = answers[0]
        found = self._compare_weights(probe, version, members)
        tolerance = Tolerance.of(self._dtype, probe.logits, self._tolerance)
        differences = [
            compare_scores(probe.logprobs, logprobs, tolerance, dtype=self._dtype, version=version, engine_index=engine)
            for engine, logprobs in zip(members, scored, strict=True)
        ]
        return found | {
            "logprob_diff": max(difference.largest for difference in differences),
            "logprob_diff_mean": max(difference.mean for difference in differences),
            "tolerance": tolerance.largest,
            "tolerance_mean": tolerance.mean,
            "largest_logit": probe.logits.largest,
        }

    def _compare_weights(self, probe: Probe, version: int, members: list[int]) -> dict[str, float]:
        """Compare the bits of weights, where they travel whole; returns which share of the layers was compared."""
        return {}

    def _wait(
        self, policy: Sequence[ray.ObjectRef], members: Sequence[int], engines: Sequence[ray.ObjectRef], phase: str
    ) -> tuple[list[Any], list[Any]]:
        """Return the answers of policy ranks and engines; the first failure ends it, for others wait for that one."""
        calls = [(ref, Caller(self._engines.name, engine)) for ref, engine in zip(engines, members, strict=True)]
        calls += [(ref, Caller(self._policy.name, rank)) for rank, ref in enumerate(policy)]
        # The members' own deadlines are `self._seconds`; their errors say more than ours.
        results = wait_together(calls, phase=phase, seconds=self._seconds + OWN_ERROR_SECONDS)
        return results[len(engines) :], results[: len(engines)]


class AdapterSync(PolicySync):
    """Gives engines the files of the policy's adapter, a hundredth of the weights or less; nobody meets in a group."""

    def _give(self, version: int, members: list[int]) -> tuple[dict[str, float], float]:
        started = time.perf_counter()
        self._wait(self._policy.submit("gather_adapter"), [], [], f"gathering the adapter of version {version}")
        gathered = time.perf_counter()
        # From the first rank's node to the engines', and not through the driver.
        files = self._policy.submit_one(0, "gathered_adapter")
        loading = [self._engines.submit_one(engine, "load_adapter", files, version) for engine in members]
        self._receiving = dict(zip(members, loading, strict=True))
        _, loaded = self._wait([], members, loading, f"transfer of the adapter of version {version}")
        self._receiving = {}
        slowest = max(loaded, key=lambda found: found["pause"])
        size = slowest.pop("bytes")
        send = time.perf_counter() - gathered - slowest["pause"]
        return {"gather": gathered - started, "send": max(0.0, send), **slowest}, size


class WeightSync(PolicySync):
    """Sends weights from all policy ranks to engines; an adapter is merged into them on the way.

    Args:
        policy, engines, dtype, tolerance, probes, hand_over: see `PolicySync`.
        engine_workers: tensor-parallel size of each engine, by number.
        transport: how weights travel.
        bucket_bytes: size of the pieces in which they are gathered and sent.
    """

    def __init__(
        self,
        policy: TrainerGroup,
        engines: ActorGroup,
        *,
        engine_workers: Sequence[int],
        transport: Transport,
        bucket_bytes: int,
        dtype: Dtype,
        tolerance: float | None,
        probes: Callable[[Sequence[np.ndarray]], list[np.ndarray]],
        hand_over: Callable[[], None] | None = None,
    ) -> None:
        self._transport: Transport = transport
        self._bucket_bytes = bucket_bytes
        self._engine_workers = engine_workers
        self._generation = 0
        self._comparison = WeightComparison(dtype)
        super().__init__(policy, engines, dtype=dtype, tolerance=tolerance, probes=probes, hand_over=hand_over)

    def prepare(self) -> None:
        """Make the sending ends in the policy's processes, also in new ones."""
        super().prepare()
        prepared = self._policy.call(
            "prepare_transfer", self._transport, self._dtype, self._bucket_bytes, self._seconds
        )
        self._manifest, self._size = ray.put(prepared[0]), float(prepared[0].bytes)
        self._members: list[int] = []
        self._sending: list[ray.ObjectRef] = []
        self._group: TransferGroup | None = None

    def catch_up(self, engine: int) -> None:
        """Give the policy's weights to an engine that came back; only while the policy does not learn."""
        # Its new process is in no group, whatever its number was in; nor are the others in the group that it gets.
        self._members = []
        super().catch_up(engine)
        self._members = []

    def _give(self, version: int, members: list[int]) -> tuple[dict[str, float], float]:
        if members != self._members:
            self._regroup(members)
        sent, received = self._transfer(version)
        return sync_timings(sent, received), self._size

    def _compare_weights(self, probe: Probe, version: int, members: list[int]) -> dict[str, float]:
        asked = [self._engines.submit_one(engine, "held_weights") for engine in members]
        _, held = self._wait([], members, asked, "summing the bits of weights")
        self._comparison.check(probe.sent, dict(zip(members, held, strict=True)), version)
        return {"compared_exactly": self._comparison.share}

    def _transfer(self, version: int) -> tuple[dict[str, float], list[dict[str, float]]]:
        """Return the seconds on the sender, and on each engine."""
        self._sending = sending = self._policy.submit("send_weights")
        receiving = [self._engines.submit_one(n, "receive", self._manifest, version) for n in self._members]
        self._receiving = dict(zip(self._members, receiving, strict=True))
        sent, received = self._wait(sending, self._members, receiving, f"transfer of weights of version {version}")
        self._receiving = {}
        return sent[0], received

    def _break_off(self) -> None:
        """Leave the group of a sync that failed, so that engines waiting in it are free for the next one."""
        self._members = []
        self._end_transfer()
        self._free_senders()
        try:
            self._policy.call("close_transfer", phase="end of a broken transfer", seconds=BREAK_OFF_SECONDS)
        except DeadlineExceeded:
            # A rank hangs in a collective that cannot be ended from outside (NCCL); the next call finds the group dead.
            self._policy.kill()
        except RoleError:
            pass
        super()._break_off()

    def _end_transfer(self) -> None:
        """Tell a policy that waits at its store until engines have copied from it that one will not."""
        if self._transport != "ipc" or self._group is None or not self._receiving:
            return
        node = self._policy.cluster.node(self._policy.slots[0])
        told = run_on(node, end_transfer, self._group, "an engine failed, or the policy itself")
        with suppress(RoleError):  # without a store nobody waits at it
            wait([told], role=self._policy.name, phase="end of a broken transfer", seconds=BREAK_OFF_SECONDS)

    def _free_senders(self) -> None:
        """End an engine that failed and to which the policy still sends: a closed connection ends the wait.

        A failed engine starts anew in any case; the policy would lose what it learned since its checkpoint.
        """
        count = len(self._sending)
        if not count or not ray.wait(self._sending, num_returns=count, timeout=OWN_ERROR_SECONDS)[1]:
            return
        for engine, ref in self._receiving.items():
            if ray.wait([ref], timeout=0)[0] and _raised(ref):
                self._engines.kill_one(engine)

    def _regroup(self, members: list[int]) -> None:
        """Make the next generation of the transfer group."""
        self._generation += 1
        workers = [self._engine_workers[engine] for engine in members]
        # Anew each time: a role whose machine died is on another one.
        host = self._engines.cluster.host(self._policy.name, self._engines.name)
        group = self._policy.call_one(0, "open_transfer", self._generation, workers, host, seconds=self._seconds)
        self._group = group
        joining = [self._policy.submit_one(0, "join_transfer")]
        connecting = [
            self._engines.submit_one(engine, "connect_transfer", group, position)
            for position, engine in enumerate(members)
        ]
        self._receiving = dict(zip(members, connecting, strict=True))
        try:
            self._wait(joining, members, connecting, "rendezvous of the transfer group")
        except RoleError as error:
            self._call_off(group, joining[0], error)
            raise
        self._receiving = {}
        self._members = members

    def _call_off(self, group: TransferGroup, joining: ray.ObjectRef, error: RoleError) -> None:
        """Tell those who came that they wait in vain, where the sender is: the driver may not reach its store."""
        node = self._policy.cluster.node(self._policy.slots[0])
        told = run_on(node, call_off, group, error.args[0])
        # Where that fails too they end by their own deadline, or are started anew.
        with suppress(RoleError):
            phase = "end of a broken rendezvous"
            wait([told, joining], role=self._policy.name, phase=phase, seconds=BREAK_OFF_SECONDS, ranks=[0, 0])


def _raised(ref: ray.ObjectRef) -> bool:
    """Tell whether a call that has ended did so by an error."""
    try:
        ray.get(ref, timeout=OWN_ERROR_SECONDS)
    except RayError:
        return True
    return False

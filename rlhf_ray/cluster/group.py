"""A role's workers: Ray actors placed by the config, called together, restarted one by one or all."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleFailed, RoleLost
from rlhf_ray.cluster.mesh import Mesh
from rlhf_ray.cluster.outcome import Caller, wait, wait_together
from rlhf_ray.cluster.supervision import Health, RestartPolicy, Supervision
from rlhf_ray.cluster.worker_environment import worker_environment
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.redaction.values import named_secrets

HEALTH_SECONDS = 10.0

PUT_AWAY_SECONDS = 5.0
"""In which a worker that is replaced puts away what it has; one that hangs makes its role wait so much longer."""
logger = logging.getLogger(__name__)


if TYPE_CHECKING:
    from rlhf_ray.cluster.connect import Cluster


def ready_together(groups: "Sequence[ActorGroup]", seconds: float | None = None) -> dict[str, list[Any]]:
    """Wait until all workers of some groups have started, saying of each group when it has.

    A group of which a worker, or its machine, dies meanwhile starts again, as often as it may.

    Returns:
        What the first call of each worker gave, by the group's name and the worker's rank.

    Raises:
        RoleLost: a worker died too often.
        DeadlineExceeded, RoleRaised: see `cluster.outcome.wait_together`; who fails so first ends the wait.
    """
    named = {group.name: group for group in groups}
    death: RoleDied | None = None
    while True:
        try:
            # Within the same block as the wait: the machine that takes another's place may die too.
            if death is not None:
                named[death.role].start_again(death)
            return _ready_once(named, seconds)
        except RoleLost:
            raise
        except RoleDied as again:
            if not named[again.role].may_restart:
                raise
            death = again


def _ready_once(named: "Mapping[str, ActorGroup]", seconds: float | None) -> dict[str, list[Any]]:
    missing = {name: len(group.starting) for name, group in named.items()}

    def answered(caller: Caller) -> None:
        missing[caller.role] -= 1
        if not missing[caller.role]:
            named[caller.role].say_ready()

    calls = [(ref, Caller(name, rank)) for name, group in named.items() for rank, ref in enumerate(group.starting)]
    limit = seconds or max(group.load_seconds for group in named.values())
    results = iter(wait_together(calls, phase="start", seconds=limit, answered=answered))
    return {name: list(islice(results, len(group.starting))) for name, group in named.items()}


class ActorGroup:
    """Workers of one role. Construction starts them and does not wait: call `ready`."""

    def __init__(
        self,
        cluster: "Cluster",
        actor_class: type,
        placement: PlacementConfig,
        name: str,
        make_arguments: Callable[[int], Mapping[str, Any]],
        max_restarts: int = 0,
        *,
        mesh: Mesh | None = None,
        environment: Mapping[str, str] | None = None,
        policy: RestartPolicy | None = None,
        start: str = "__ray_ready__",
        end: str | None = None,
        weight_bytes: int = 0,
        load_in_turn: bool = False,
    ) -> None:
        """Place and start all workers.

        Args:
            cluster: the cluster with the groups.
            actor_class: a plain class (not decorated by Ray); async methods make async actors.
            placement: workers, and what each takes.
            name: the role's name in errors and plans; unique in the cluster.
            make_arguments: keyword arguments of a rank's constructor, called in the order of ranks, and again at each
                restart.
            max_restarts: restarts of one rank within an hour; more is an error.
            mesh: grid of the ranks; None: all are data ranks.
            environment: further environment variables of every worker.
            policy: a restart policy in place of `max_restarts`.
            start: method that every new worker is told first, and that returns when it can work; by default one that
                waits for the constructor. What a method raises reaches the driver as it is, what a constructor raises
                as text.
            end: method that every worker is told before the cluster is left, by which it puts away what lives outside
                of its process; None: killing it is enough.
            weight_bytes: of the model that each worker loads, by which its deadlines go.
            load_in_turn: whether `begin` lets workers on one GPU load one after another, as those must that measure
                what is free there. The method then takes what the worker before gave.

        Raises:
            DoesNotFit: the group does not exist or is too small.
        """
        self.name = name
        self.cluster = cluster
        self.mesh = mesh or Mesh(placement.workers)
        if self.mesh.size != placement.workers:
            raise ValueError(f"{name}: a mesh of {self.mesh.size} ranks for {placement.workers} workers")
        self.slots = cluster.layout.add(name, placement)
        self._placement = placement
        self._class: Any = ray.remote(actor_class)
        self._make_arguments = make_arguments
        self._environment = dict(environment or {})
        self._supervision = Supervision(placement.workers, policy or RestartPolicy(max_restarts))
        self._start_method, self._end_method = start, end
        self.load_seconds = cluster.deadlines.loading(weight_bytes)
        """Deadline of a start."""
        self.transfer_seconds = cluster.deadlines.transfer(weight_bytes)
        """Deadline of giving all workers new weights."""
        self.handles: list[ActorHandle] = []
        self.starting: list[ray.ObjectRef] = []
        """The call of each worker that returns when it can work."""
        self._load_in_turn = load_in_turn
        self._loading: tuple[str, tuple[Any, ...]] | None = None
        """What `begin` told the workers."""
        self._began: float | None = None
        cluster.adopt(self)
        self._start_all()

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self._placement.workers

    @property
    def may_restart(self) -> bool:
        """Whether a worker that dies is started again at all."""
        return self._supervision.policy.restarts > 0

    @property
    def shares_devices(self) -> bool:
        """Whether other roles compute on the same devices, so that they take turns. True only once they are placed."""
        return bool(self.cluster.layout.sharing(self.name))

    def ready(self, seconds: float | None = None) -> None:
        """Wait until all workers have started.

        Raises:
            DeadlineExceeded, RoleDied, RoleRaised: see `wait`.
        """
        ready_together([self], seconds)

    def begin(self, method: str, *args: Any) -> None:
        """Tell all workers to load what they work with, where that is not their first call; `ready` waits for it."""
        self._began = time.monotonic()
        self._loading = method, args
        if not self._load_in_turn:
            self.starting = self.submit(method, *args)
            return
        self.starting = []
        last: dict[tuple[str, int, int], ray.ObjectRef] = {}
        for rank, slot in enumerate(self.slots):
            devices = [(slot.group, slot.bundle, device) for device in slot.devices]
            # Ray begins a call once the references among its arguments are there.
            before = dict.fromkeys(last[device] for device in devices if device in last)
            self.starting.append(self.submit_one(rank, method, *args, *before))
            last |= dict.fromkeys(devices, self.starting[-1])

    def say_ready(self) -> None:
        """Tell the person who watches, once for each start, that all workers can work, and how long that took."""
        if self._began is not None:
            self.cluster.say(f"{self.name} is ready ({time.monotonic() - self._began:.0f} s)")
            self._began = None

    def submit(self, method: str, *args: Any, **kwargs: Any) -> list[ray.ObjectRef]:
        """Call a method on all ranks with the same arguments; put what is large into the store once and pass that."""
        return [getattr(handle, method).remote(*args, **kwargs) for handle in self.handles]

    def submit_each(self, method: str, each: Mapping[str, Sequence[Any]], **shared: Any) -> list[ray.ObjectRef]:
        """Call a method on all ranks.

        Args:
            method: its name.
            each: by argument, an item for each data rank, which all its ranks get.
            shared: arguments that are the same for all.
        """
        spread = {name: self.mesh.spread(items) for name, items in each.items()}
        return [
            getattr(handle, method).remote(**shared, **{name: items[rank] for name, items in spread.items()})
            for rank, handle in enumerate(self.handles)
        ]

    def submit_one(self, rank: int, method: str, *args: Any, **kwargs: Any) -> ray.ObjectRef:
        """Call a method on one rank."""
        ref: ray.ObjectRef[Any] = getattr(self.handles[rank], method).remote(*args, **kwargs)
        return ref

    def wait(
        self, refs: Sequence[ray.ObjectRef], *, phase: str, seconds: float | None = None, rank: int | None = None
    ) -> list[Any]:
        """Return the results of submitted calls by rank; `rank` says that they all come from that one.

        Raises:
            DeadlineExceeded, RoleDied, RoleRaised: see `cluster.outcome.wait`.
        """
        limit = seconds if seconds is not None else self.cluster.deadlines.call_seconds
        ranks = range(len(refs)) if rank is None else [rank] * len(refs)
        results = wait(refs, role=self.name, phase=phase, seconds=limit, ranks=ranks)
        for one in set(ranks):
            self._supervision.works(one)
        return results

    def call(
        self, method: str, *args: Any, phase: str | None = None, seconds: float | None = None, **kwargs: Any
    ) -> list[Any]:
        """Call a method on all ranks and wait: results by rank (`mesh.collect` leaves one of each data rank)."""
        return self.wait(self.submit(method, *args, **kwargs), phase=phase or method, seconds=seconds)

    def call_one(
        self, rank: int, method: str, *args: Any, phase: str | None = None, seconds: float | None = None, **kwargs: Any
    ) -> Any:
        """Call a method on one rank and wait for its result."""
        ref = self.submit_one(rank, method, *args, **kwargs)
        return self.wait([ref], phase=phase or method, seconds=seconds, rank=rank)[0]

    def turn(self, method: str, *arguments: Any) -> None:
        """Tell all ranks to `wake`, `sleep` or `free_cache`; nothing happens where the role shares no devices."""
        if self.shares_devices:
            self.cluster.turns.append((self.name, method))
            for rank, ref in enumerate(self.submit(method, *arguments)):
                # Each rank is waited for: the others take their turn also where one died, which is missed at its next
                # call by who can start it again. Its devices are free.
                with suppress(RoleDied):
                    self.wait([ref], phase=method, rank=rank)

    def health(self, seconds: float = HEALTH_SECONDS, method: str = "__ray_ready__") -> list[Health]:
        """Return the state of each rank; one that is busy in a synchronous call does not answer: it counts as down.

        `method` is what is asked; a role with processes of its own has one that looks at them too.
        """
        refs = self.submit(method)
        states = []
        deadline = time.monotonic() + seconds
        for rank, ref in enumerate(refs):
            try:
                left = max(0.0, deadline - time.monotonic())
                wait([ref], role=self.name, phase="health check", seconds=left, ranks=[rank])
            except (RoleFailed, DeadlineExceeded):
                states.append(Health.DOWN)
            else:
                states.append(Health.HEALTHY)
        return states

    def restart(self, rank: int) -> None:
        """Replace one worker and wait until it has started; one that dies before is replaced again.

        Raises:
            RoleLost: the rank was restarted too often.
            DeadlineExceeded, RoleRaised: the new worker did not start, or a machine died and none took its place.
        """
        death: RoleDied | None = None
        while True:
            self._spend(rank, death)
            self.kill_one(rank)
            try:
                self.cluster.look_again(self.name, [self.slots[rank]])
                self.handles[rank], self.starting[rank] = self._start(rank)
                # It works once it has answered what follows: some only load then.
                wait([self.starting[rank]], role=self.name, phase="restart", seconds=self.load_seconds, ranks=[rank])
                return
            except RoleDied as again:
                death = again
                logger.warning("%s; starting it again", death)

    def restart_all(self, failed_rank: int | None = 0) -> None:
        """Replace all workers, as a group of collectives needs when one of them failed, and wait for them.

        Where one dies before all have started, they are replaced again.

        Args:
            failed_rank: whose failure counts; None: nobody failed, the group shall be as new.

        Raises:
            RoleLost: a rank was restarted too often.
            DeadlineExceeded, RoleRaised: a new worker did not start, or a machine died and none took its place.
        """
        if failed_rank is not None:
            self._spend(failed_rank)
        try:
            self._replace_all()
        except RoleDied as death:
            self.start_again(death)
        self.ready()

    def start_again(self, death: RoleDied) -> None:
        """Replace all workers after one died as they started, and let them load what they were loading; do not wait.

        Raises:
            RoleLost: a rank died too often. RoleDied: another machine died meanwhile.
            DeadlineExceeded: a machine died and none took its place.
        """
        logger.warning("%s; starting it again", death)
        self._spend(death.rank or 0, death)
        self._replace_all()
        if self._loading is not None:
            method, args = self._loading
            self.begin(method, *args)

    def _replace_all(self) -> None:
        self.kill()
        self.cluster.look_again(self.name, self.slots)
        self._start_all()

    def _spend(self, rank: int, death: RoleDied | None = None) -> None:
        """Count a failure, and wait as long as it asks before the restart."""
        if self._supervision.failed(rank) is Health.LOST:
            policy = self._supervision.policy
            last = f"; the last time: {death}" if death is not None else ""
            raise RoleLost(
                f"{self.name} rank {rank} failed {self._supervision.failures(rank)} times within "
                f"{policy.window_seconds:g} s of work; {policy.restarts} restarts are allowed{last}",
                self.name,
                rank,
                "restart",
            ) from death
        time.sleep(self._supervision.wait(rank))
        # What befalls the new worker, from its first breath, is a failure of its own.
        self._supervision.restarted(rank)

    def submit_end(self) -> list[ray.ObjectRef]:
        """Tell all workers that they will be killed, where the role has something to put away.

        One that is still loading hears nothing, and is not told.
        """
        if self._end_method is None:
            return []
        loaded = ray.wait(self.starting, num_returns=len(self.starting), timeout=0)[0]
        return [self.submit_one(rank, self._end_method) for rank, ref in enumerate(self.starting) if ref in loaded]

    def kill(self) -> None:
        """End all workers at once."""
        for rank in range(len(self.handles)):
            self._kill(rank)

    def kill_one(self, rank: int) -> None:
        """End one worker, which may first put away what it has; a later `restart` replaces it."""
        if self._end_method is not None:
            ray.wait([self.submit_one(rank, self._end_method)], timeout=PUT_AWAY_SECONDS)
        self._kill(rank)

    def _kill(self, rank: int) -> None:
        # A stopped process ends within some seconds; the new worker waits in the placement group until it has.
        ray.kill(self.handles[rank], no_restart=True)

    def _start_all(self) -> None:
        self._began = time.monotonic()
        self.handles, self.starting = [], []
        for rank in range(self.size):
            handle, starting = self._start(rank)
            self.handles.append(handle)
            self.starting.append(starting)

    def _start(self, rank: int) -> tuple[ActorHandle, ray.ObjectRef]:
        """Start a worker; return it and its first call."""
        slot = self.slots[rank]
        variables = worker_environment(self.cluster.device_ids(slot), self._placement.threads, self.cluster.one_node)
        handle: ActorHandle = self._class.options(
            num_cpus=slot.cpus,
            num_gpus=0,
            max_restarts=0,
            max_task_retries=0,
            runtime_env={
                "env_vars": variables | named_secrets() | self.cluster.environment.of(self.name) | self._environment
            },
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                self.cluster.placement_groups[slot.group], placement_group_bundle_index=slot.bundle
            ),
        ).remote(**self._make_arguments(rank))
        return handle, getattr(handle, self._start_method).remote()

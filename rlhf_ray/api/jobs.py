"""Jobs from Python: the same configs, checks, run folders and errors as the command's, and results back."""

import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from rlhf_ray.api.results import Run
from rlhf_ray.config.base import Section
from rlhf_ray.config.commands import JOBS
from rlhf_ray.config.errors import BadInput, perhaps
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.reading.documents import Document, read_document
from rlhf_ray.config.reading.verbs import deduce_verb, load_document, verb_of
from rlhf_ray.redaction.process import secrets_hidden
from rlhf_ray.start import start_job

Config = str | PathLike[str] | Mapping[str, Any] | Section
"""A YAML file, its content as a mapping, or a config that was read before."""


def run(config: Config, overrides: Mapping[str, Any] | None = None, *, verb: str | None = None) -> Run:
    """Do a job, as `rlhf VERB CONFIG.yaml --key value ...` does it, and return its results.

    It begins, or goes on from the newest checkpoint of its run folder. It may be called where an event loop runs, as in
    a notebook; Ctrl-C, or a notebook's stop button, saves after the step and returns, a second one leaves at once.

    Args:
        config: a YAML file, its content as a mapping, or a config that `read_config` returned.
        overrides: values by key, such as `{"steps": 10, "policy.learning_rate": 1e-6}`; they win.
        verb: which job it is, such as `ppo`. None: the one that the config's keys fit.

    Raises:
        BadInput: the config cannot be used, with a line for each mistake; nothing was started or written.
        RlhfError: the job failed; the message says how to go on.
    """
    with secrets_hidden():
        verb, read = _read(config, overrides, verb)
        start_job(verb, read)
        return Run(Path(read.results()).expanduser())


def read_config(config: Config, overrides: Mapping[str, Any] | None = None, *, verb: str | None = None) -> Section:
    """Return a job's config, read and checked as `run` does it; nothing starts. The arguments are those of `run`.

    Raises:
        BadInput: the config cannot be used, with a line for each mistake.
    """
    with secrets_hidden():
        return _read(config, overrides, verb)[1]


def _read(config: Config, overrides: Mapping[str, Any] | None, verb: str | None) -> tuple[str, JobConfig]:
    if verb is not None and verb not in JOBS:
        hint = perhaps(verb, JOBS) or f"; they are {', '.join(JOBS)}"
        raise BadInput(f"verb: no job is called {verb!r}{hint}")
    if isinstance(config, Section):
        verb = verb or verb_of(config)
        config = config.model_dump(mode="json")
    if isinstance(config, Mapping):
        document = Document(None, _plain(config))
    elif isinstance(config, str | PathLike):
        document = read_document(Path(config))
    else:
        raise BadInput(f"config: a path, a mapping or a config of this package, not {type(config).__name__}")
    verb = verb or deduce_verb(document, "verb='{verb}'")
    return verb, load_document(verb, document, _plain(overrides or {}))


def _plain(value: Any) -> Any:
    """Return the value as a YAML file would give it: mappings, lists, and paths as text."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return os.fspath(value) if isinstance(value, PathLike) else value

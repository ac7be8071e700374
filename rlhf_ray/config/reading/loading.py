"""Read a config file and the command line's overrides into a checked config."""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from rlhf_ray.config.base import Section
from rlhf_ray.config.checks.files import missing_files
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.reading.documents import Document, read_document
from rlhf_ray.config.reading.explain import Origins, explain
from rlhf_ray.config.reading.overrides import apply_override, overrides_of, parse_overrides
from rlhf_ray.redaction.texts import each_text, hide_forms

Job = TypeVar("Job", bound=JobConfig)
Settings = TypeVar("Settings", bound=Section)


def load_config(
    section: type[Job],
    source: str | Path | Document,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    check_files: bool = True,
) -> Job:
    """Read a config, apply overrides such as `--policy.learning_rate 1e-6`, and check the whole.

    Args:
        section: the schema of the job.
        source: a YAML file, or what was read of one.
        overrides: arguments of the command line after the file; or values by key, such as `policy.learning_rate`.
        check_files: also look whether local files that the config names exist.

    Raises:
        BadInput: with one line for each thing that is wrong, naming file, line and key, and the nearest valid name.
    """
    document = source if isinstance(source, Document) else read_document(source)
    given = (
        overrides_of(overrides, section)
        if isinstance(overrides, Mapping)
        else parse_overrides(list(overrides), section)
    )
    data = deepcopy(document.data)
    for override in given:
        apply_override(data, override)
    origins = Origins(document, given)
    try:
        config = section.model_validate(data)
    except ValidationError as error:
        raise BadInput("\n".join(map(origins.line, explain(error, data, section)))) from None
    problems = list(config.problems())
    if check_files and not problems:
        problems = missing_files(config)
    if problems:
        raise BadInput("\n".join(map(origins.line, problems)))
    return config


def load_arguments(
    section: type[Settings], arguments: list[str], *, positional: str | None = None, rest: bool = False
) -> Settings:
    """Read settings from the command line alone.

    Args:
        section: the schema of the settings.
        arguments: of the command line.
        positional: setting, a list, that takes the arguments without a name.
        rest: whether it takes everything from the first argument without a name on, so that the section's own options
            come before it.

    Raises:
        BadInput: with one line for each thing that is wrong.
    """
    named, options = _divide(arguments, rest)
    if named and positional is None:
        raise BadInput(f"{named[0]}: not understood; settings are written --key value")
    data: dict[str, Any] = {positional: named} if positional and named else {}
    given = parse_overrides(options, section)
    for override in given:
        apply_override(data, override)
    try:
        return section.model_validate(data)
    except ValidationError as error:
        problems = explain(error, data, section)
        origins = Origins(None, given)
        raise BadInput("\n".join(map(origins.line, problems))) from None


def _divide(arguments: list[str], rest: bool) -> tuple[list[str], list[str]]:
    """Divide a command line into arguments without a name, and options with their values."""
    named: list[str] = []
    options: list[str] = []
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        if argument.startswith("--"):
            length = 1 if "=" in argument else 2
            options += arguments[position : position + length]
            position += length
        elif rest:
            return arguments[position:], options
        else:
            named.append(argument)
            position += 1
    return named, options


def dump_config(config: Section) -> str:
    """Return the resolved config as YAML, which loads again to an equal config, without credentials of URLs."""
    return yaml.safe_dump(dumped(config), sort_keys=False, allow_unicode=True)


def dumped(config: Section) -> dict[str, Any]:
    """Return the resolved config as it is written down, without credentials of URLs."""
    content: dict[str, Any] = each_text(config.model_dump(mode="json"), hide_forms)
    return content

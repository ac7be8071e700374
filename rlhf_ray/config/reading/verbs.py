"""The jobs that a config can describe, and which of them one is meant for."""

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic.fields import FieldInfo

from rlhf_ray.config.base import Section
from rlhf_ray.config.commands import JOBS
from rlhf_ray.config.errors import BadInput, perhaps
from rlhf_ray.config.job import JobConfig
from rlhf_ray.config.reading.documents import Document, read_document
from rlhf_ray.config.reading.loading import load_config
from rlhf_ray.config.reading.overrides import DRY_RUN, PLAN_INSTEAD

SCHEMAS = {verb: job.schema for verb, job in JOBS.items()}
"""Config class of each job, as `module:class`."""


def import_schema(reference: str) -> type[Section]:
    """Import a config class from `module:class`."""
    module, _, name = reference.partition(":")
    schema: type[Section] = getattr(importlib.import_module(module), name)
    return schema


def job_schema(verb: str) -> type[JobConfig]:
    """Import the config class of a job."""
    schema = import_schema(SCHEMAS[verb])
    assert issubclass(schema, JobConfig)
    return schema


def verb_of(config: Section) -> str | None:
    """Return the job whose config this is; None for other sections."""
    own = f"{type(config).__module__}:{type(config).__name__}"
    return next((verb for verb, schema in SCHEMAS.items() if schema == own), None)


def load_job(verb: str, arguments: Sequence[str], *, check_files: bool = True) -> JobConfig:
    """Read `CONFIG.yaml --key value ...` by the schema of a verb.

    Raises:
        BadInput: no config file is given, or it or an override is wrong.
    """
    if DRY_RUN.intersection(arguments):
        raise BadInput(f"{', '.join(DRY_RUN.intersection(arguments))}: {PLAN_INSTEAD}")
    if not arguments or arguments[0].startswith("-"):
        raise BadInput(
            f"{'no config file is given' if not arguments else 'the config file comes first'}: "
            f"rlhf {verb} CONFIG.yaml [--key value ...]; all keys: rlhf {verb} --help"
        )
    return load_document(verb, read_document(arguments[0]), arguments[1:], check_files=check_files)


def split_command(words: Sequence[str], how: str) -> tuple[str, list[str]]:
    """Split `[VERB] CONFIG.yaml [--key value ...]` into the verb, deduced where it is left out, and its arguments.

    Args:
        words: at least one.
        how: see `deduce_verb`.

    Raises:
        BadInput: no verb is given, and the config fits several.
    """
    return (words[0], list(words[1:])) if words[0] in SCHEMAS else (deduce_verb(words[0], how), list(words))


def load_document(
    verb: str, document: Document, overrides: Iterable[str] | Mapping[str, Any] = (), *, check_files: bool = True
) -> JobConfig:
    """Read a config by the schema of a verb, with overrides as `load_config` takes them.

    Raises:
        BadInput: it or an override is wrong, or it is a config for another verb.
    """
    try:
        return load_config(job_schema(verb), document, overrides, check_files=check_files)
    except BadInput:
        others = _other_verbs(document, verb)
        if not others:
            raise
        # Its keys would be unknown here, a line for each.
        listed = " and ".join(f"rlhf {other}" for other in others)
        raise BadInput(
            f"{_named(document)}: a config for {listed}, not for rlhf {verb}; run it by its own verb, or give another"
        ) from None


def _other_verbs(document: Document, verb: str) -> list[str]:
    """List the jobs that a config describes instead of this one; none where its top-level keys are all this one's."""
    keys = set(document.data)
    if keys <= _fields(verb).keys():
        return []
    return _fitting(document, keys)


def deduce_verb(source: str | Document, how: str = "rlhf plan {verb} {path}") -> str:
    """Return the job that a config describes, from its top-level keys: the one it fits, else the one it is nearest to.

    Args:
        source: a YAML file, or what was read of one.
        how: what to write where it fits several jobs, so that it is told which one is meant.

    Raises:
        BadInput: it fits several jobs, or is as near to several.
    """
    document = source if isinstance(source, Document) else read_document(source)
    keys = set(document.data)
    fits = _fitting(document, keys)
    if len(fits) == 1:
        return fits[0]
    known = {verb: len(keys & _fields(verb).keys()) for verb in SCHEMAS}
    nearest = [verb for verb in SCHEMAS if known[verb] == max(known.values())]
    if not fits and len(nearest) == 1:
        return nearest[0]
    such = f"name the job, such as: {how.format(verb=(fits or nearest)[0], path=document.path)}"
    if fits:
        raise BadInput(f"{_named(document)}: fits {' and '.join(fits)}; {such}")
    strange = [key for key in document.data if not any(key in _fields(verb) for verb in SCHEMAS)]
    known_keys = {name for verb in nearest for name in _fields(verb)}
    unknown = f"{strange[0]}: unknown key{perhaps(strange[0], known_keys) or '.'} " if strange else ""
    raise BadInput(f"{unknown}{_named(document)} is as near to {' and '.join(nearest)}; {such}")


def _named(document: Document) -> str:
    return str(document.path or "config")


def _fitting(document: Document, keys: set[str]) -> list[str]:
    """List the jobs that a config with these top-level keys fits."""
    required = {verb: {name for name, info in _fields(verb).items() if info.is_required()} for verb in SCHEMAS}
    fits = [verb for verb in SCHEMAS if required[verb] <= keys <= _fields(verb).keys()]
    # A key that only one of them must have, as PPO its rewards, tells it from those that merely allow it.
    fits = [verb for verb in fits if not any(required[verb] < required[other] for other in fits)]
    if len(fits) > 1:
        # The same key may hold other things in another job, as `loss` does.
        fits = [verb for verb in fits if _can_be_read(document, job_schema(verb))] or fits
    return fits


def _fields(verb: str) -> dict[str, FieldInfo]:
    return job_schema(verb).model_fields


def _can_be_read(document: Document, schema: type[JobConfig]) -> bool:
    try:
        load_config(schema, document, check_files=False)
    except BadInput:
        return False
    return True

"""The jobs that a config file can describe, and which of them a file is meant for."""

import importlib
from collections.abc import Sequence

from pydantic.fields import FieldInfo

from rlhf_ray.config.base import Section
from rlhf_ray.config.documents import read_document
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.loading import load_config

SCHEMAS = {
    "sft": "rlhf_ray.config.supervised:SFTConfig",
    "reward": "rlhf_ray.config.supervised:RewardTrainingConfig",
    "dpo": "rlhf_ray.config.dpo:DPOConfig",
    "ppo": "rlhf_ray.config.ppo:PPOConfig",
    "generate": "rlhf_ray.config.inference:GenerateConfig",
    "score": "rlhf_ray.config.inference:ScoreConfig",
    "feedback": "rlhf_ray.config.feedback:FeedbackConfig",
    "evaluate": "rlhf_ray.config.evaluate:EvaluateConfig",
    "iterate": "rlhf_ray.config.iterate:IterateConfig",
    "data": "rlhf_ray.config.cleaning:DataJobConfig",
    "label": "rlhf_ray.config.labelling:LabelConfig",
    "compare": "rlhf_ray.config.labelling:CompareConfig",
}
"""Config class of each job, as `module:class`."""


def import_schema(reference: str) -> type[Section]:
    """Import a config class from `module:class`."""
    module, _, name = reference.partition(":")
    schema: type[Section] = getattr(importlib.import_module(module), name)
    return schema


def load_job(verb: str, arguments: Sequence[str], *, check_files: bool = True) -> Section:
    """Read `CONFIG.yaml --key value ...` by the schema of a verb.

    Raises:
        BadInput: no config file is given, or it or an override is wrong.
    """
    if not arguments or arguments[0].startswith("-"):
        raise BadInput(f"the config file comes first: rlhf {verb} CONFIG.yaml --key value")
    path = arguments[0]
    try:
        return load_config(import_schema(SCHEMAS[verb]), path, arguments[1:], check_files=check_files)
    except BadInput:
        others = _other_verbs(path, verb)
        if not others:
            raise
        # Its keys would be unknown here, a line for each.
        listed = " and ".join(f"rlhf {other}" for other in others)
        raise BadInput(
            f"{path}: a config for {listed}, not for rlhf {verb}; run it by its own verb, or give another file"
        ) from None


def _other_verbs(path: str, verb: str) -> list[str]:
    """The jobs that a file describes instead of this one; none where its top-level keys are all of this one's too."""
    keys = set(read_document(path).data)
    if keys <= _fields(verb).keys():
        return []
    return _fitting(path, keys)


def deduce_verb(path: str) -> str:
    """Return the job that a file describes, from its top-level keys: the one it fits, else the one it is nearest to.

    Raises:
        BadInput: it fits several jobs.
    """
    keys = set(read_document(path).data)
    fits = _fitting(path, keys)
    if len(fits) > 1:
        raise BadInput(f"{path}: fits {' and '.join(fits)}; name the job, such as: rlhf plan {fits[0]} {path}")
    return fits[0] if fits else max(SCHEMAS, key=lambda verb: len(keys & _fields(verb).keys()))


def _fitting(path: str, keys: set[str]) -> list[str]:
    """The jobs that a file with these top-level keys fits."""
    required = {verb: {name for name, info in _fields(verb).items() if info.is_required()} for verb in SCHEMAS}
    fits = [verb for verb in SCHEMAS if required[verb] <= keys <= _fields(verb).keys()]
    # A key that only one of them must have, as PPO its rewards, tells it from those that merely allow it.
    fits = [verb for verb in fits if not any(required[verb] < required[other] for other in fits)]
    if len(fits) > 1:
        # The same key may hold other things in another job, as `loss` does.
        fits = [verb for verb in fits if _can_be_read(path, import_schema(SCHEMAS[verb]))] or fits
    return fits


def _fields(verb: str) -> dict[str, FieldInfo]:
    return import_schema(SCHEMAS[verb]).model_fields


def _can_be_read(path: str, schema: type[Section]) -> bool:
    try:
        load_config(schema, path, [], check_files=False)
    except BadInput:
        return False
    return True

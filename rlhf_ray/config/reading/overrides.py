"""Overrides from the command line, `--policy.learning_rate 1e-6`, applied to a config file's content.

Values are read as YAML reads them, and a key may be written with `-` for `_`. They reach everything that the file
reaches: items of lists (`--rewards.0.weight 2`), named sections (`--critics.value.learning_rate 1e-5`), keys that are
passed through to a library (`--rollout.engine.max_num_seqs 64`), and sections that are null by default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from rlhf_ray.config.base import Section
from rlhf_ray.config.errors import BadInput
from rlhf_ray.config.reading.documents import SHOWN_CHARACTERS, KeyPath, parse_value
from rlhf_ray.config.reading.schema import accepts, child_names, child_types
from rlhf_ray.config.reading.suggest import suggest
from rlhf_ray.redaction.texts import redact_text

DRY_RUN = {"--dry-run", "--dry_run", "--dryrun", "--plan"}
"""What other commands call `rlhf plan`."""
PLAN_INSTEAD = "`rlhf plan [VERB] CONFIG.yaml` shows what a job would take, and starts nothing"


@dataclass(frozen=True)
class Override:
    """One `--key value` of the command line."""

    option: str
    """As it was typed, without its value."""
    key: KeyPath
    value: Any


def parse_overrides(arguments: list[str], section: type[Section]) -> list[Override]:
    """Read `--key value`, `--key=value`, and `--key` alone for a switch.

    Raises:
        BadInput: an argument is no option, its key is not in the schema, or its value is missing or is not YAML.
    """
    overrides, position = [], 0
    while position < len(arguments):
        option, equals, text = arguments[position].partition("=")
        position += 1
        if not option.startswith("--") or len(option) == 2:
            raise BadInput(
                f"{redact_text(option)[:SHOWN_CHARACTERS]}: not understood; overrides are written --key value"
            )
        if option in DRY_RUN:
            raise BadInput(f"{option}: {PLAN_INSTEAD}")
        key, types = resolve_key(option, section)
        if not equals:
            follows = position < len(arguments) and not arguments[position].startswith("--")
            if follows:
                text = arguments[position]
                position += 1
            elif any(accepts(one, bool) for one in types or []):
                text = "true"
            else:
                raise BadInput(f"{option}: needs a value")
        overrides.append(Override(option, key, _read(option, text, types)))
    return overrides


def overrides_of(values: Mapping[str, Any], section: type[Section]) -> list[Override]:
    """Return the overrides that values by dotted key stand for, as a program gives them.

    Raises:
        BadInput: a key is not in the schema.
    """
    return [Override(key, resolve_key(key, section)[0], value) for key, value in values.items()]


def resolve_key(option: str, section: type[Section]) -> tuple[KeyPath, list[Any] | None]:
    """Turn `--policy.learning-rate`, dashes or none before it, into its key path and its possible types (None: any).

    Raises:
        BadInput: no such key; the message has the nearest one.
    """
    key: list[str | int] = []
    types: list[Any] | None = [section]
    dashes = "--" if option.startswith("--") else ""
    for part in option.removeprefix("--").split("."):
        underscored = part.replace("-", "_")
        if types is None:
            key.append(underscored)
            continue
        step: str | int = int(part) if part.isdigit() else underscored
        below = [child_types(one, step) for one in types]
        if all(found == [] for found in below):
            if any(child_types(one, 0) for one in types):
                above = ".".join(map(str, key))
                raise BadInput(f"{option}: items of {above} go by number; the first is {dashes}{above}.0")
            raise BadInput(f"{option}: unknown key{suggest((*key, underscored), section, dashes)[0]}")
        is_field = isinstance(step, int) or step in child_names(types)
        types = None if any(found is None for found in below) else [one for found in below for one in found or []]
        names_section = not is_field and bool(child_names(types or []))
        key.append(part if names_section else step)
    return tuple(key), types


def apply_override(data: dict[str, Any], override: Override) -> None:
    """Write an override into a config file's content, making the sections on its way.

    Raises:
        BadInput: the key goes through a plain value, or past the end of a list.
    """
    here: Any = data
    for depth, step in enumerate(override.key):
        last = depth == len(override.key) - 1
        if isinstance(here, dict):
            name = str(step)
            if last:
                here[name] = override.value
            elif here.get(name) is None:
                here[name] = [] if isinstance(override.key[depth + 1], int) else {}
            here = here[name]
        elif isinstance(here, list) and isinstance(step, int):
            if step > len(here):
                raise BadInput(f"{override.option}: the list has {len(here)} items, so the next is number {len(here)}")
            if step == len(here):
                here.append({})
            if last:
                here[step] = override.value
            here = here[step]
        else:
            raise BadInput(f"{override.option}: {'.'.join(map(str, override.key[:depth]))} is {here!r}, not a section")


def _read(option: str, text: str, types: list[Any] | None) -> Any:
    takes_text = types is not None and any(accepts(one, str) for one in types)
    try:
        value = parse_value(text)
    except yaml.YAMLError as error:
        if takes_text:
            # A glob such as *.jsonl begins like an alias.
            return text
        problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else str(error)
        raise BadInput(f"{option}: not a YAML value: {' '.join(str(problem).split())}") from None
    takes_value = types is not None and any(accepts(one, type(value)) for one in types)
    return text if takes_text and not takes_value else value

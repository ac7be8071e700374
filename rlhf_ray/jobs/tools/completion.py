"""`rlhf completion`: verbs, options and their values at a shell's prompt, from the schema."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from rlhf_ray.config.commands import JOBS, TOOLS
from rlhf_ray.config.jobs.tools import CompletionConfig
from rlhf_ray.config.reading.schema import describe
from rlhf_ray.config.reading.verbs import import_schema

CHOICES = re.compile(r"one of ([^>]+?)(?: or null)?$")


@dataclass(frozen=True)
class Option:
    """An option of a verb."""

    name: str
    """Without its dashes."""
    doc: str
    """The first sentence of its documentation."""
    choices: tuple[str, ...]
    """Its values; none where it takes any."""


@dataclass(frozen=True)
class Verb:
    """A verb and its options."""

    name: str
    help: str
    options: tuple[Option, ...]
    takes_job: bool
    """Whether a job's verb follows."""


def run(config: CompletionConfig) -> None:
    """Print the shell's script."""
    print(render(config.shell), end="")


def render(shell: str) -> str:
    """Return the script for `bash`, `zsh` or `fish`."""
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["quoted"] = _quoted
    template = files("rlhf_ray.jobs.tools").joinpath("templates", f"completion.{shell}.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(verbs=list(verbs()), jobs=list(JOBS))


def verbs() -> Iterator[Verb]:
    """Yield all verbs of the command."""
    for name, verb in (JOBS | TOOLS).items():
        takes_job = name in TOOLS and TOOLS[name].rest
        yield Verb(name, verb.help, tuple(_options(verb.schema)), takes_job)


def _options(schema: str) -> Iterator[Option]:
    for field in describe(import_schema(schema)):
        # A name is the user's own; a list's first item stands for all.
        if ".NAME" in field.path:
            continue
        found = CHOICES.match(field.type)
        choices = tuple(found[1].split(", ")) if found else ("true", "false") if field.type == "true or false" else ()
        yield Option(field.path.replace(".N", ".0"), _sentence(field.doc), choices)


def _sentence(text: str) -> str:
    """Return the first sentence, on one line."""
    return re.split(r"(?<=[^.])[.;](?: |$)", text, maxsplit=1)[0]


def _quoted(text: str) -> str:
    """Return a text as one word of any of the shells: between single quotes, of which it must have none."""
    return "'" + text.replace("'", "’").replace("\\", "/") + "'"

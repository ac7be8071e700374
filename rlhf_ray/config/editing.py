"""`rlhf schema` and `rlhf completion`: what helps to write configs and commands."""

from typing import Annotated, Literal

from pydantic import BeforeValidator

from rlhf_ray.config.base import Section
from rlhf_ray.config.paths import OnePath, only


class SchemaConfig(Section):
    """Write the JSON Schema of each job's config, by which an editor completes, explains and checks config files."""

    folder: OnePath
    """Folder to write into; a config names its own by the line `# yaml-language-server: $schema=FOLDER/VERB.json`."""


class CompletionConfig(Section):
    """Print what completes verbs, options and values at a shell's prompt, to be read by the shell as it starts."""

    shell: Annotated[Literal["bash", "zsh", "fish"], BeforeValidator(only)]
    """Which shell."""

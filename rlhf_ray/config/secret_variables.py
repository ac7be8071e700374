"""Secrets that a config names: by their environment variables, never by themselves."""

import os
import re
from typing import Annotated

from pydantic import AfterValidator

from rlhf_ray.config.errors import BadInput
from rlhf_ray.redaction.texts import holds_known_token
from rlhf_ray.redaction.values import name_secret

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _named(variable: str) -> str:
    # The message must not repeat what may be the secret.
    if _NAME.fullmatch(variable) is None or holds_known_token(variable):
        raise ValueError("is the name of an environment variable, not the secret itself")
    name_secret(variable)
    return variable


SecretVariable = Annotated[str, AfterValidator(_named)]
"""Name of an environment variable, whose value is hidden from the moment that the config is read."""


def read_secret(variable: str, where: str) -> str:
    """Return the secret, which is sent as an HTTP header.

    Args:
        variable: that holds it; in a process that got a config from another one, it is hidden from now on.
        where: the setting that names it, for errors, which do not have the value.

    Raises:
        BadInput: it is not set here, or cannot be a header.
    """
    name_secret(variable)
    value = os.environ.get(variable, "")
    if not value:
        raise BadInput(f"{where}: {variable} is not set in the environment of this process; set it where jobs run")
    if not (value.isascii() and value.isprintable()):
        raise BadInput(
            f"{where}: the value of {variable} has characters that no HTTP header can hold, such as a line's end"
        )
    return value

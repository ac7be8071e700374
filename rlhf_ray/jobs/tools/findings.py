"""What the checks of `rlhf doctor` find."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    level: Level
    name: str
    text: str
    """What was found, and what to do if it is not well."""

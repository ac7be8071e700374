"""The kinds of reward sources: which class scores for each, by the name of the kind in a config."""

import importlib
from typing import Any, Protocol, cast

from rlhf_ray.config.rewards import RewardConfig
from rlhf_ray.scoring.source import RewardSourceProtocol

SCORERS = {
    "model": "rlhf_ray.scoring.model:ModelScorer",
    "function": "rlhf_ray.scoring.function:FunctionScorer",
    "http": "rlhf_ray.scoring.http:HTTPScorer",
}
"""`module:class` of each kind; nothing is imported before a source of the kind is there."""


class SourceKind(Protocol):
    """Answers of each kind's class before there is a source; `source` is the config of one."""

    def open(self, source: Any, tokens_per_microbatch: int) -> RewardSourceProtocol:
        """Load the source in this process, on its GPU if it has one.

        Raises:
            BadInput: what it needs cannot be used.
        """
        ...

    def refuse(self, key: str, source: Any) -> None:
        """Look at what the source at `key` needs before anything starts, and load nothing.

        Raises:
            BadInput: what it needs cannot be used; names the key and what to do.
        """
        ...

    def identity(self, source: Any) -> list[Any]:
        """Return what lies behind its settings, such as a hash of files, as JSON can hold it: with other contents its
        scores are others."""
        ...


def kind_of(source: RewardConfig) -> SourceKind:
    """Import the class that scores for a source."""
    module, _, name = SCORERS[source.kind].partition(":")
    return cast(SourceKind, getattr(importlib.import_module(module), name))

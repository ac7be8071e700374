"""rlhf_ray: reinforcement learning from human feedback on Ray, vLLM and DeepSpeed."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rlhf_ray.cluster.niceness import yield_no_more as _yield_no_more
from rlhf_ray.redaction.process import hide_secrets as _hide_secrets
from rlhf_ray.redaction.values import is_worker as _is_worker

if TYPE_CHECKING:
    from rlhf_ray.api.jobs import read_config, run
    from rlhf_ray.api.results import Rows, Run
    from rlhf_ray.api.reward_model import RewardModel
    from rlhf_ray.config.errors import BadInput, Interrupted, RlhfError
    from rlhf_ray.rollout.replies import Reply

__version__ = "0.1.0"

__all__ = [
    "BadInput",
    "Interrupted",
    "Reply",
    "RewardModel",
    "RlhfError",
    "Rows",
    "Run",
    "__version__",
    "read_config",
    "run",
]

_HOMES = {
    "BadInput": "rlhf_ray.config.errors",
    "Interrupted": "rlhf_ray.config.errors",
    "Reply": "rlhf_ray.rollout.replies",
    "RewardModel": "rlhf_ray.api.reward_model",
    "RlhfError": "rlhf_ray.config.errors",
    "Rows": "rlhf_ray.api.results",
    "Run": "rlhf_ray.api.results",
    "read_config": "rlhf_ray.api.jobs",
    "run": "rlhf_ray.api.jobs",
}
"""Where each name is. It is imported when it is first asked for: every process of a run imports this package."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if _is_worker():
    # Empty where the libraries shall choose: Ray writes 1 where there is none. Before any of them reads it.
    if not os.environ.get("OMP_NUM_THREADS", "1"):
        del os.environ["OMP_NUM_THREADS"]
    _yield_no_more()
    # Ray's actors, the processes of reward functions and vLLM's own: all that a run starts has this package.
    _hide_secrets()

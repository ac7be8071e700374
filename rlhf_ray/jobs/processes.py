"""Memory that the processes of a run hold before they hold a model: Python, and what each of them imports.

On CPU it takes of the same memory as the models do, and more than small ones. On GPUs it does not count.

The sizes are what each process held at most, in anonymous memory (RssAnon of /proc/PID/status, looked at twice a
second), in a PPO run of three steps with all kinds of roles and a model of 0.1 million parameters, on two cores with
the versions of requirements/cpu.txt; that of a tensor-parallel worker is from an engine of two, without its cache. So
is the memory of a run counted in its `run.json`: the pages of libraries, which all processes map, are not in it. The
whole of that run was 3.9 GiB, of which 1 GiB is the engine's cache; all these add up to 4.0.
"""

from collections.abc import Mapping

from rlhf_ray.config.base import Section
from rlhf_ray.config.parts import placements_of
from rlhf_ray.config.placement import PlacementConfig
from rlhf_ray.config.rewards import FunctionReward, HTTPReward, ModelReward
from rlhf_ray.config.rollout import RolloutConfig
from rlhf_ray.rollout.engine_arguments import tensor_parallel_size

MIB = 2.0**20

TRAINER = 320 * MIB
"""A rank of a trained or frozen model: torch, transformers, DeepSpeed."""

ENGINE = 885 * MIB
"""The actor of an engine and vLLM's own process, each with torch and vLLM."""

ENGINE_WORKER = 425 * MIB
"""Each of several tensor-parallel workers, a process of vLLM's."""

MODEL_SCORER = 300 * MIB
"""The actor of a reward model: torch and transformers."""

SCORER = 65 * MIB
"""The actor of a reward function or a service."""

FUNCTION = 12 * MIB
"""The process of a reward function, without what its file imports."""

DRIVER = 430 * MIB
"""The command itself, with torch for the arithmetic of a batch."""

RAY = 425 * MIB
"""Ray's own processes of a machine, and idle workers; what lies in its object store is not in it."""


def worker_process(role: PlacementConfig) -> float:
    """Bytes of one worker of a role, beside its model; none on a GPU, whose memory they do not take."""
    if role.gpus_per_worker:
        return 0.0
    match role:
        case RolloutConfig():
            workers = tensor_parallel_size(role)
            return ENGINE + (workers * ENGINE_WORKER if workers > 1 else 0)
        case FunctionReward():
            return SCORER + FUNCTION
        case HTTPReward():
            return SCORER
        case ModelReward():
            return MODEL_SCORER
    return TRAINER


def other_processes(config: Section) -> Mapping[str, float]:
    """Bytes of what runs beside the roles, where all of them compute on CPU."""
    on_gpu = any(role.gpus_per_worker for role in placements_of(config).values())
    return {} if on_gpu else {"driver": DRIVER, "Ray": RAY}
